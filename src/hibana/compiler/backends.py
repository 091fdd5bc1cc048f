"""The backends of the package; each is imported when a step is first compiled for it."""

from hibana.compiler.backend import Backend, Kernels, register


def _of_cpu(products: bool) -> type[Kernels]:
    if products:
        from hibana.compiler.cpu.samples import SampleKernels

        return SampleKernels
    from hibana.compiler.cpu.kernels import CpuKernels

    return CpuKernels


def _cpu_refuses(device: str) -> str:
    from hibana.runtime import available

    return available.refusal() if device == "cpu" else f"it serves cpu, not {device}"


def _of_triton(products: bool) -> type[Kernels]:
    from hibana.compiler.triton.kernels import GpuKernels, SampleKernels

    return SampleKernels if products else GpuKernels


def _triton_refuses(device: str) -> str:
    from hibana.compiler.triton import kernels as gpu

    return gpu.refusal(device)


register(Backend("cpu", ("cpu",), _of_cpu, _cpu_refuses))
register(Backend("triton", ("cuda",), _of_triton, _triton_refuses))
