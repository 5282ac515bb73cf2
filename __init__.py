"""NextControl: ControlNeXt and CtrLoRA for ComfyUI."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Hand the nodes to ComfyUI; nothing is imported or registered before this is called."""
    from .nodes.extension import NextControlExtension

    return NextControlExtension()
