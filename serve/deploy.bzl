"""A Python program as one file that runs where there is no Bazel."""

load("@rules_python//python:defs.bzl", "PyInfo")

def _item(file, workspace, imports):
    """Returns where a runfile is in its tree, and goes in the archive.

    Args:
      file: a File.
      workspace: the main repository's name in the tree.
      imports: import paths of packages, relative to the tree.
    """
    if not file.short_path.startswith("../"):
        return workspace + "/" + file.short_path, "tree/app/" + file.short_path
    path = file.short_path[len("../"):]
    for root in imports:
        if path.startswith(root + "/"):
            return path, "tree/packages/" + path[len(root) + 1:]

    # Of Bazel itself.
    return path, None

def _python_deploy(ctx):
    binary = ctx.attr.binary[DefaultInfo]
    imports = ctx.attr.binary[PyInfo].imports.to_list()

    # The program that Bazel starts it with is of no use elsewhere.
    starter = binary.files_to_run.executable
    args = ctx.actions.args()
    args.use_param_file("@%s", use_always = True)
    args.set_param_file_format("multiline")
    args.add(ctx.outputs.executable, format = "--output=%s")
    args.add(ctx.label.name, format = "--name=%s")
    args.add(ctx.file.main.short_path, format = "--main=%s")
    args.add(ctx.file._template, format = "--template=%s")
    args.add(ctx.file._unpack, format = "--unpack=%s")
    args.add(ctx.file._start, format = "--start=%s")
    args.add(ctx.file._accelerator, format = "--accelerator=%s")
    for file in binary.default_runfiles.files.to_list():
        path, name = _item(file, ctx.workspace_name, imports)
        if file != starter and name:
            args.add("--item={}={}.runfiles/{}".format(name, starter.path, path))
    ctx.actions.run(
        outputs = [ctx.outputs.executable],
        inputs = [
            ctx.file._accelerator,
            ctx.file._start,
            ctx.file._template,
            ctx.file._unpack,
        ],
        # Its runfiles, as a tree: Bazel warns of folders among the inputs.
        tools = [binary.files_to_run],
        executable = ctx.executable._pack,
        arguments = [args],
        mnemonic = "PythonDeploy",
        progress_message = "Packing %{output}",
    )
    return [DefaultInfo(
        executable = ctx.outputs.executable,
        files = depset([ctx.outputs.executable]),
    )]

python_deploy = rule(
    doc = "One executable file: a py_binary and all it needs but Python.",
    implementation = _python_deploy,
    attrs = {
        "binary": attr.label(
            doc = "A py_binary.",
            mandatory = True,
            providers = [PyInfo],
        ),
        "main": attr.label(
            doc = "The binary's file that is run.",
            allow_single_file = [".py"],
            mandatory = True,
        ),
        "_accelerator": attr.label(
            allow_single_file = True,
            default = "@pypi//:accelerator",
        ),
        "_pack": attr.label(
            cfg = "exec",
            default = "//serve:deploy_pack_main",
            executable = True,
        ),
        "_start": attr.label(
            allow_single_file = True,
            default = "//serve:deploy_start.py",
        ),
        "_template": attr.label(
            allow_single_file = True,
            default = "//serve:deploy.sh",
        ),
        "_unpack": attr.label(
            allow_single_file = True,
            default = "//serve:deploy_unpack.py",
        ),
    },
    executable = True,
)
