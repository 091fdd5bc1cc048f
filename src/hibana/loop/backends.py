"""The backends of the package: each is loaded when a step is first compiled for it."""

from hibana.loop.backend import Backend, Kernels, register


def _of_cpu(products: bool) -> type[Kernels]:
    if products:
        from hibana.loop.cpu.samples import SampleKernels

        return SampleKernels
    from hibana.loop.cpu.kernels import CpuKernels

    return CpuKernels


def _of_triton(products: bool) -> type[Kernels]:
    if products:
        from hibana.loop.triton.samples import SampleKernels

        return SampleKernels
    from hibana.loop.triton.kernels import GpuKernels

    return GpuKernels


def _triton_refuses(device: str) -> str:
    from hibana.loop.triton import kernels as gpu

    return gpu.refusal(device)


register(Backend("cpu", ("cpu",), _of_cpu))
register(Backend("triton", ("cuda",), _of_triton, _triton_refuses))
