"""Dense ReLU networks with random weights in other libraries for small devices, timed by `in_c.py`.

`PEERS` maps the name of a package to a function that returns, by description, functions that process one
image. The package must be installed.
"""

import ctypes
import subprocess
import warnings
from collections.abc import Callable, Sequence
from contextlib import chdir
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["PEERS"]

Runs = dict[str, Callable[[], object]]


def _model(schema: ModuleType, sizes: Sequence[int], int8: bool) -> bytes:
    """Returns a TensorFlow Lite model of fully connected layers with float or int8 weights."""
    import flatbuffers

    types, random = schema.TensorType, np.random.default_rng(0)
    dtype = types.INT8 if int8 else types.FLOAT32
    model, graph, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT()
    model.version, model.buffers, model.subgraphs, model.operatorCodes = (
        3,
        [schema.BufferT()],
        [graph],
        [code],
    )
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 4 if int8 else 1
    graph.tensors, graph.operators = [], []

    def add_tensor(shape: Sequence[int], dtype: int, scale: float, data: Any = None) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), dtype, 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            model.buffers.append(buffer)
            tensor.buffer = len(model.buffers) - 1
        if int8:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [0]
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    scale, weight_scale = 1 / 127, 0.01
    activations = add_tensor((1, sizes[0]), dtype, scale)
    graph.inputs = [activations]
    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        integers = random.integers(-127, 128, (outputs, inputs))
        weights = integers.astype(np.int8) if int8 else (integers / 127 / inputs**0.5).astype(np.float32)
        bias = np.zeros(outputs, np.int32 if int8 else np.float32)
        operands = [
            activations,
            add_tensor(weights.shape, dtype, weight_scale, weights),
            add_tensor(bias.shape, types.INT32 if int8 else dtype, scale * weight_scale, bias),
        ]
        scale = 0.05
        activations = add_tensor((1, outputs), dtype, scale)
        operator, options = schema.OperatorT(), schema.FullyConnectedOptionsT()
        last = layer == len(sizes) - 2
        functions = schema.ActivationFunctionType
        options.fusedActivationFunction = functions.NONE if last else functions.RELU
        operator.inputs, operator.outputs = operands, [activations]
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = options
        graph.operators.append(operator)
    graph.outputs = [activations]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _image(size: int, int8: bool) -> Any:
    """Returns a random image ``[1, size]``."""
    integers = np.random.default_rng(0).integers(0, 127, (1, size))
    return integers.astype(np.int8) if int8 else (integers / 127).astype(np.float32)


def micro(sizes: Sequence[int], folder: Path) -> Runs:
    """Returns the calls of TensorFlow Lite Micro from Python, with its portable kernels."""
    from tflite_micro.python.tflite_micro import runtime
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    runs: Runs = {}
    for int8 in (True, False):
        loaded, image = runtime.Interpreter.from_bytes(_model(schema, sizes, int8)), _image(sizes[0], int8)

        def run(loaded: Any = loaded, image: Any = image) -> object:
            loaded.set_input(image, 0)
            loaded.invoke()
            return loaded.get_output(0)

        runs[f"TensorFlow Lite Micro, {'int8' if int8 else 'floats'}"] = run
    return runs


def lite(sizes: Sequence[int], folder: Path) -> Runs:
    """Returns the calls of LiteRT with XNNPACK, whose kernels are optimized for this processor."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    runs: Runs = {}
    for int8 in (True, False):
        loaded = Interpreter(model_content=_model(schema, sizes, int8), num_threads=1)
        loaded.allocate_tensors()
        image = _image(sizes[0], int8)
        into, out_of = loaded.get_input_details()[0]["index"], loaded.get_output_details()[0]["index"]

        def run(loaded: Any = loaded, image: Any = image, at: Any = (into, out_of)) -> object:
            loaded.set_tensor(at[0], image)
            loaded.invoke()
            return loaded.get_tensor(at[1])

        runs[f"LiteRT with XNNPACK, {'int8' if int8 else 'floats'}"] = run
    return runs


def emlearn(sizes: Sequence[int], folder: Path) -> Runs:
    """Returns a call of the C code that emlearn writes for a scikit-learn network.

    The compiler and its flags are those of `in_c.py`.
    """
    import emlearn
    from sklearn.neural_network import MLPClassifier

    random = np.random.default_rng(0)
    with chdir(folder), warnings.catch_warnings():  # emlearn leaves files in the working directory
        warnings.simplefilter("ignore")
        net = MLPClassifier(sizes[1:-1], max_iter=1)
        net.fit(random.random((300, sizes[0])).astype(np.float32), np.arange(300) % sizes[-1])
        emlearn.convert(net, method="inline").save(file=str(folder / "dense.h"), name="dense")
    call = f"int run(const float *x) {{ return dense_predict(x, {sizes[0]}); }}"
    (folder / "dense.c").write_text(f'#include "dense.h"\n{call}\n')
    library, headers = folder / "dense.so", f"-I{emlearn.includedir}"
    flags = ["-O2", "-march=native", "-shared", "-fPIC", headers]
    subprocess.run(["cc", *flags, "-o", library, folder / "dense.c", "-lm"], check=True, capture_output=True)
    image = _image(sizes[0], False)
    code, pixels = ctypes.CDLL(str(library)), image.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return {"emlearn, floats": lambda: code.run(pixels)}


PEERS: dict[str, Callable[[Sequence[int], Path], Runs]] = {
    "tflite_micro": micro,
    "ai_edge_litert": lite,
    "emlearn": emlearn,
}
