// A whole sequence as one node of autograd, without Python between its tensors and its kernels.
//
// What hibana.compiler.autograd._Run does, for a cell without tensors of its own over contiguous inputs from
// rest. All that is known before the tensors are comes from hibana.compiler.cpu.node, as a Launch.

#include <ATen/ATen.h>
#include <ATen/LegacyBatchedTensorImpl.h>
#include <c10/core/GradMode.h>
#include <c10/util/strides.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/utils/pythoncapi_compat.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::variable_list;
using Numbers = std::vector<int64_t>;

// Python's objects are let go under Python's lock, whichever thread a node ends in; not while Python ends, which
// stops a thread where it waits for the lock, and a thread that is stopped in a destructor aborts the process.
struct Held {
  PyObject* object;
  explicit Held(PyObject* given) : object(given) { Py_INCREF(object); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    if (!Py_IsInitialized() || Py_IsFinalizing()) return;
    const auto lock = PyGILState_Ensure();
    Py_DECREF(object);
    PyGILState_Release(lock);
  }
};

// Where the arguments are that no shape determines; -1: the kernel has none of that name.
struct Places {
  int64_t input, input_step, outputs, grad_outputs, grad_outputs_step, grad_input, scalar_gradient;
  int64_t forward_args, backward_args, buffer;
  Numbers last, last_grads, residuals;
};

// A kernel, how many pieces of work there are and how many are not worth a thread, and its arguments.
struct Call {
  int64_t address, count, grain;
  Numbers arguments;  // zero where those are written that no shape determines
  Places at;

  void run(Numbers& given) const {
    if (count <= grain) {
      reinterpret_cast<void (*)(int64_t, int64_t, void*)>(address)(0, count, given.data());
      return;
    }
    const auto failed =
        torch_parallel_for(0, count, grain, reinterpret_cast<ParallelFunc>(address), given.data());
    TORCH_CHECK(!failed, "torch_parallel_for failed over ", count, " pieces of work");
  }
};

// A backward that recomputes the forward, in tiles: hibana.compiler.cpu.recompute.Recomputation.
struct Recomputation {
  Call call, forward;
  int64_t buffer;
  Held tables;  // whose addresses are among the arguments
};

struct Launch {
  int64_t states;
  int64_t ends, keeps, reads_input, nontemporal;  // whether, 0 or 1
  int64_t support_at, spikes_at;  // among what is kept; -1: nowhere
  int64_t aliasing_from, output_offset, buffer_offset, page, line;  // hibana.compiler.cpu.walk.unaliased
  Numbers bits;        // the shape of the bits of a sequence
  Numbers booleans;    // whether each of what is kept is bits
  Call forward, backward;
  std::unique_ptr<Recomputation> recomputation;  // none, if the backward reads what the forward kept
};

int64_t place(const Tensor& tensor) {
  return tensor.defined() ? reinterpret_cast<int64_t>(tensor.data_ptr()) : 0;
}

// How far into `fresh` memory it is `output_offset` from what is `read`, within a page.
int64_t shifted(const Launch& launch, int64_t read, int64_t output_offset, int64_t fresh) {
  return (read + output_offset - fresh) & (launch.page - launch.line);
}

// A new tensor of the shape of `read`, as hibana.compiler.cpu.walk.unaliased makes one.
Tensor unaliased(const Launch& launch, const Tensor& read) {
  const auto size = static_cast<int64_t>(read.element_size());
  const bool near = read.numel() * size < launch.aliasing_from;
  const auto buffer = at::empty({read.numel() + (near ? 0 : launch.page / size)}, read.options());
  TORCH_CHECK(
      !launch.nontemporal || place(buffer) % launch.line == 0,
      "memory for tensors must begin at a multiple of ", launch.line, " bytes; HIBANA_NODE=off takes any");
  const auto shift = near ? 0 : shifted(launch, place(read), launch.output_offset, place(buffer));
  buffer.unsafeGetTensorImpl()->set_sizes_and_strides(
      read.sizes(), c10::contiguous_strides(read.sizes()), shift / size);
  return buffer;
}

void put(Numbers& arguments, const Numbers& at, const variable_list& tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) arguments[at[i]] = place(tensors[i]);
}

struct Forwarded {
  Tensor outputs;
  variable_list last, kept;
};

Forwarded forward(const Launch& launch, const Tensor& inputs) {
  Forwarded found;
  found.outputs = unaliased(launch, inputs);
  if (launch.ends) {
    for (int64_t i = 1; i < launch.states; ++i)
      found.last.push_back(at::empty(inputs.sizes().slice(1), inputs.options()));
  }
  for (const auto boolean : launch.booleans) {
    found.kept.push_back(
        boolean ? at::empty(launch.bits, inputs.options().dtype(at::kByte)) : at::empty_like(inputs));
  }
  const auto& call = launch.forward;
  const auto& at = call.at;
  auto arguments = call.arguments;
  arguments[at.input] = place(inputs);
  arguments[at.input_step] = inputs.stride(0);
  arguments[at.outputs] = place(found.outputs);
  put(arguments, at.last, found.last);
  put(arguments, at.residuals, found.kept);
  Py_BEGIN_ALLOW_THREADS call.run(arguments);
  Py_END_ALLOW_THREADS
  return found;
}

// A gradient as kernels walk it: each step contiguous, whatever the stride over time, signs as in memory.
Tensor steps_contiguous(Tensor grad) {
  if (grad.is_neg()) grad = grad.resolve_neg();
  return grad.is_contiguous() || grad.select(0, 0).is_contiguous() ? grad : grad.contiguous();
}

Tensor backward(
    const Launch& launch, const Tensor& inputs, const variable_list& kept, Tensor outputs, variable_list last,
    const Tensor& scalar_gradient) {
  const auto read = [&](const Call& call) {
    auto arguments = call.arguments;
    if (launch.reads_input) {
      arguments[call.at.input] = place(inputs);
      arguments[call.at.input_step] = inputs.stride(0);
    }
    return arguments;
  };
  auto grad_input = unaliased(launch, outputs);
  const auto& call = launch.backward;
  auto arguments = read(call);
  arguments[call.at.grad_outputs] = place(outputs);
  arguments[call.at.grad_outputs_step] = outputs.stride(0);
  arguments[call.at.grad_input] = place(grad_input);
  if (scalar_gradient.defined()) arguments[call.at.scalar_gradient] = place(scalar_gradient);
  put(arguments, call.at.last_grads, last);
  if (!launch.recomputation) {
    put(arguments, call.at.residuals, kept);
    call.run(arguments);
    return grad_input;
  }
  const auto& recomputation = *launch.recomputation;
  auto forward = read(recomputation.forward);
  const auto buffer = at::empty({recomputation.buffer + launch.page}, outputs.options().dtype(at::kByte));
  const auto& at = recomputation.call.at;
  auto alternately = recomputation.call.arguments;
  alternately[at.forward_args] = reinterpret_cast<int64_t>(forward.data());
  alternately[at.backward_args] = reinterpret_cast<int64_t>(arguments.data());
  alternately[at.buffer] = place(buffer) + shifted(launch, place(outputs), launch.buffer_offset, place(buffer));
  recomputation.call.run(alternately);
  return grad_input;
}

// Nodes are held by intrusive pointers, in older torch by shared ones.
using NodePointer = decltype(torch::autograd::Edge::function);

template <class Made, class Pointer = NodePointer, class... Given>
Pointer make_node(Given&&... given) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>) {
    return Pointer(new Made(std::forward<Given>(given)...), [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Made>(std::forward<Given>(given)...);
  }
}

struct Run final : Node {
  Run(const Launch& launch, PyObject* specification) : launch(launch), specification(specification) {}

  std::string name() const override { return "_RunBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    inputs.reset_data();
    for (auto& value : kept) value.reset_data();
    support = Tensor();
    spikes = Tensor();
    scalar_gradient = Tensor();
    released = true;
  }

  variable_list apply(variable_list&& grads) override {
    const auto of_a_batch = [](auto& grad) { return grad.defined() && at::isBatchedTensor(grad); };
    const auto batched = std::find_if(grads.begin(), grads.end(), of_a_batch);
    if (batched != grads.end()) return {one_by_one(grads, *batched)};
    for (const auto& grad : grads) {
      TORCH_CHECK(
          !grad.defined() || !grad.key_set().has(c10::DispatchKey::FuncTorchBatched),
          "layers of hibana take no batch of gradients from torch.vmap: give it to "
          "torch.autograd.grad(..., is_grads_batched=True) instead");
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!task_should_compute_output(0)) return {Tensor()};
    const bool again = at::GradMode::is_enabled();
    torch::autograd::edge_list edges;
    if (again) {
      edges = torch::autograd::collect_next_edges(grads);
      edges.push_back(next_edge(0));
    }
    Tensor found;
    {
      const at::NoGradGuard no_grad;
      found = gradient(std::move(grads));
    }
    if (!again || !found.defined()) return {found};
    // it hangs on the inputs too, so that whoever asks for a derivative through them is told
    auto error = make_node<torch::autograd::Error>(
        "twice differentiated, what can be differentiated once (once_differentiable): "
        "layer.backend = \"reference\", or hibana.unroll(..., backend=\"reference\"), has derivatives of every order",
        std::move(edges));
    torch::autograd::set_history(found, error);
    return {found};
  }

  // the gradient for each of a batch of `grads` (is_grads_batched), of which `batched` is one, as a batch
  Tensor one_by_one(const variable_list& grads, const Tensor& batched) {
    const auto level = at::maybeGetBatchedImpl(batched)->bdims().back().level();
    const auto opened = [&](const Tensor& grad) { return at::_remove_batch_dim(grad, level, 1, 0); };
    const auto size = opened(batched).size(0);
    std::vector<Tensor> found;
    for (int64_t i = 0; i < size; ++i) {
      variable_list one;
      for (const auto& grad : grads) {
        one.push_back(grad.defined() && at::isBatchedTensor(grad) ? opened(grad)[i] : grad);
        TORCH_CHECK(
            !one.back().defined() || !at::isBatchedTensor(one.back()),
            "layers of hibana take no batch of batches of gradients: make them one batch");
      }
      found.push_back(apply(std::move(one))[0]);
      if (!found.back().defined()) return Tensor();
    }
    return at::_add_batch_dim(at::stack(found), 0, level);
  }

  Tensor gradient(variable_list grads) {
    variable_list values;
    Tensor read;
    TORCH_CHECK(!released,
                "Trying to backward through the graph a second time: what the first backward read has been freed "
                "(retain_graph=True keeps it).\nA state that hibana.run or return_state=True gave has the graph of all "
                "calls before: detach it between the calls, if each has a backward of its own.");
    for (const auto& value : kept) values.push_back(value.unpack());
    if (launch.reads_input) read = inputs.unpack();
    const auto given = scalar_gradient_task == torch::autograd::get_current_graph_task_id() ? scalar_gradient : Tensor();
    const auto any = std::find_if(grads.begin(), grads.end(), [](auto& grad) { return grad.defined(); });
    if (any == grads.end() && !given.defined()) return Tensor();
    auto outputs = grads[0].defined() ? steps_contiguous(std::move(grads[0]))
                                      : at::zeros(shape.slice(1), options).expand(shape);
    variable_list last(launch.states - 1);
    for (size_t i = 1; i < grads.size(); ++i) {
      if (grads[i].defined()) last[i - 1] = grads[i].resolve_neg().contiguous();
    }
    return backward(launch, read, values, std::move(outputs), std::move(last), given);
  }

  const Launch& launch;  // kept alive by the specification
  const Held specification;
  std::vector<int64_t> sizes;
  at::IntArrayRef shape;
  at::TensorOptions options;
  torch::autograd::SavedVariable inputs;
  std::vector<torch::autograd::SavedVariable> kept;
  bool released = false;  // by a backward that keeps no graph
  Tensor support, spikes;
  Tensor scalar_gradient;  // a gradient that is the same for all that was emitted, and the backward that it is of
  int64_t scalar_gradient_task = -1;
};

PyObject* run(PyObject*, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 3 && THPVariable_Check(given[1]), "run takes a launch, a tensor and a run specification");
  const auto* launch = static_cast<const Launch*>(PyCapsule_GetPointer(given[0], "hibana.Launch"));
  if (!launch) return nullptr;
  const auto& inputs = THPVariable_Unpack(given[1]);
  TORCH_CHECK_NOT_IMPLEMENTED(
      !torch::autograd::isFwGradDefined(inputs), "hibana's cells have no forward-mode derivative");
  Forwarded found;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    found = forward(*launch, inputs);
  }
  if (launch->keeps) {
    auto pointer = make_node<Run>(*launch, given[2]);
    auto& node = static_cast<Run&>(*pointer);
    node.set_next_edges(torch::autograd::collect_next_edges(inputs));
    node.sizes = inputs.sizes().vec();
    node.shape = node.sizes;
    node.options = inputs.options();
    if (launch->reads_input) node.inputs = torch::autograd::SavedVariable(inputs.detach(), false);
    for (const auto& value : found.kept) node.kept.emplace_back(value, false);
    if (launch->support_at >= 0) node.support = found.kept[launch->support_at];
    if (launch->spikes_at >= 0) node.spikes = found.kept[launch->spikes_at];
    torch::autograd::set_history(found.outputs, pointer);
    torch::autograd::set_history(found.last, pointer);
  }
  THPObjectPtr last(PyList_New(static_cast<Py_ssize_t>(found.last.size())));
  if (!last) return nullptr;
  for (size_t i = 0; i < found.last.size(); ++i)
    PyList_SET_ITEM(last.get(), static_cast<Py_ssize_t>(i), THPVariable_Wrap(found.last[i]));
  return Py_BuildValue("NN", THPVariable_Wrap(found.outputs), last.release());
  END_HANDLE_TH_ERRORS
}

PyObject* item(PyObject* dict, const char* name) {
  auto* found = PyDict_GetItemString(dict, name);
  TORCH_CHECK_VALUE(found, "a launch needs ", name);
  return found;
}

int64_t number(PyObject* object) {
  const auto value = PyLong_AsLongLong(object);
  if (PyErr_Occurred()) throw python_error();
  return value;
}

Numbers numbers(PyObject* object) {
  THPObjectPtr list(PySequence_Fast(object, "numbers are needed"));
  if (!list) throw python_error();
  Numbers found;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list.get()); ++i)
    found.push_back(number(PySequence_Fast_GET_ITEM(list.get(), i)));
  return found;
}

Places places_of(PyObject* dict) {
  const auto one = [&](const char* name) {
    auto* found = PyDict_GetItemString(dict, name);
    return found ? number(found) : -1;
  };
  const auto several = [&](const char* name) {
    auto* found = PyDict_GetItemString(dict, name);
    return found ? numbers(found) : Numbers{};
  };
  return {one("input"), one("input_step"), one("outputs"), one("grad_outputs"), one("grad_outputs_step"),
          one("grad_input"), one("scalar_gradient_at"), one("forward_args"), one("backward_args"), one("buffer"),
          several("last"), several("last_grads"), several("residuals")};
}

Call call_of(PyObject* dict) {
  return {number(item(dict, "address")), number(item(dict, "count")), number(item(dict, "grain")),
          numbers(item(dict, "arguments")), places_of(item(dict, "at"))};
}

PyObject* make_launch(PyObject*, PyObject* given) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(PyDict_Check(given), "launch takes a dictionary");
  auto launch = std::make_unique<Launch>();
  const std::pair<const char*, int64_t Launch::*> facts[] = {
      {"ends", &Launch::ends}, {"keeps", &Launch::keeps}, {"states", &Launch::states},
      {"reads_input", &Launch::reads_input}, {"nontemporal", &Launch::nontemporal},
      {"support_at", &Launch::support_at}, {"spikes_at", &Launch::spikes_at},
      {"aliasing_from", &Launch::aliasing_from}, {"output_offset", &Launch::output_offset},
      {"buffer_offset", &Launch::buffer_offset}, {"page", &Launch::page}, {"line", &Launch::line}};
  for (const auto& [name, fact] : facts) launch.get()->*fact = number(item(given, name));
  launch->bits = numbers(item(given, "bits"));
  launch->booleans = numbers(item(given, "booleans"));
  launch->forward = call_of(item(given, "forward"));
  if (launch->keeps) launch->backward = call_of(item(given, "backward"));
  if (auto* recomputation = PyDict_GetItemString(given, "recomputation")) {
    launch->recomputation.reset(new Recomputation{
        call_of(item(recomputation, "call")), call_of(item(recomputation, "forward")),
        number(item(recomputation, "buffer")), Held(item(recomputation, "tables"))});
  }
  return PyCapsule_New(launch.release(), "hibana.Launch", [](PyObject* capsule) {
    delete static_cast<Launch*>(PyCapsule_GetPointer(capsule, "hibana.Launch"));
  });
  END_HANDLE_TH_ERRORS
}

Run& run_of(PyObject* self) {
  return static_cast<Run&>(*reinterpret_cast<torch::autograd::THPCppFunction*>(self)->cdata);
}

PyObject* specification_of(PyObject* self, void*) { return Py_NewRef(run_of(self).specification.object); }

template <Tensor Run::* bits>
PyObject* bits_of(PyObject* self, void*) {
  HANDLE_TH_ERRORS
  return THPVariable_Wrap(run_of(self).*bits);  // None, if undefined
  END_HANDLE_TH_ERRORS
}

// As hibana.compiler.derivatives has it: None, or a pair of the backward's number and the gradient.
PyObject* scalar_gradient_of(PyObject* self, void*) {
  HANDLE_TH_ERRORS
  const auto& run = run_of(self);
  if (!run.scalar_gradient.defined()) Py_RETURN_NONE;
  return Py_BuildValue("LN", static_cast<long long>(run.scalar_gradient_task), THPVariable_Wrap(run.scalar_gradient));
  END_HANDLE_TH_ERRORS
}

int set_scalar_gradient(PyObject* self, PyObject* given, void*) {
  HANDLE_TH_ERRORS
  long long task;
  PyObject* grad;
  TORCH_CHECK_TYPE(given && PyTuple_Check(given), "scalar_gradient is a pair");
  if (!PyArg_ParseTuple(given, "LO", &task, &grad)) return -1;
  TORCH_CHECK_TYPE(THPVariable_Check(grad), "of a number and a tensor");
  auto& run = run_of(self);
  run.scalar_gradient_task = task;
  run.scalar_gradient = THPVariable_Unpack(grad);
  return 0;
  END_HANDLE_TH_ERRORS_RET(-1)
}

using namespace torch::autograd;  // the macro below names them so

PyGetSetDef PROPERTIES[] = {
    THP_FUNCTION_DEFAULT_PROPERTIES,
    {"specification", specification_of, nullptr, nullptr, nullptr},
    {"support", bits_of<&Run::support>, nullptr, nullptr, nullptr},
    {"spikes", bits_of<&Run::spikes>, nullptr, nullptr, nullptr},
    {"scalar_gradient", scalar_gradient_of, set_scalar_gradient, nullptr, nullptr},
    {nullptr}};

PyMethodDef FUNCTIONS[] = {
    {"launch", make_launch, METH_O, nullptr},
    {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(run)), METH_FASTCALL, nullptr},
    {nullptr}};

PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "hibana_node", nullptr, -1, FUNCTIONS};

PyTypeObject RUN = {PyVarObject_HEAD_INIT(nullptr, 0)};

}  // namespace

PyMODINIT_FUNC PyInit_hibana_node() {
  torch::autograd::_initFunctionPyTypeObject(RUN, "hibana_node.Run", PROPERTIES, nullptr);
  torch::autograd::registerCppFunction(typeid(Run), &RUN);
  return PyModule_Create(&MODULE);
}
