"""Compiled functions kept on disk: a later start of the same program loads them, and traces nothing.

torch keeps what it compiles too, but finds it by the traced graph, and to trace a block of Hope takes longer than all
else at a second start together. What a trace depends on is known here before it: the function's code and that of the
generated functions which it calls, this package, torch and its settings, and what the function is called with. All that
is the key. Where torch would guard a function by the identity of objects, which another process does not have, the key
has their content; all other guards (shapes, strides, types, gradients, modes) are kept and asked at each call.

CPU only, with the versions of torch named in `VERSIONS`, whose way to store a compiled function it is.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import logging
import platform
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from nsam.backends.torch.runtime.compilation import RECOMPILE_LIMIT
from nsam.backends.torch.runtime.files import put
from nsam.backends.torch.runtime.instructions import prepare_to_compile

PASS = "post_grad_custom_post_pass"
"""The option of torch.compile that has the pass for native kernels."""
VERSIONS = ("2.13.", "2.14.")
Function = Callable[..., Any]
Tensors = Mapping[str, Tensor]
_LOG = logging.getLogger("nsam")
_PLAIN = (int, float, str, bool, bytes, type(None))


class Kept:
    """`function` compiled by torch with `options`, and what was compiled kept on disk.

    Called like the function: `(w, s, at, *values)`. A call that cannot be kept (another device, a subclass of Tensor)
    goes to torch.compile.
    """

    def __init__(self, function: Function, options: Mapping[str, Any]) -> None:
        self.function, self.options = function, dict(options)
        self.entries: dict[Any, list[tuple[Function, Function]]] = {}
        code = function.__code__
        self.names = code.co_varnames[3 : code.co_argcount]  # after w, s, at
        self.rest = code.co_varnames[code.co_argcount] if code.co_flags & inspect.CO_VARARGS else None
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        self.closure = {name: cell.cell_contents for name, cell in cells}

    @functools.cached_property
    def compiled(self) -> Function:
        """By torch alone: made where it is needed, for torch then imports more than to load a function takes."""
        prepare_to_compile()
        return compiled_by_torch(self.function, self.options)

    def ready(self, w: Tensors, s: Tensors, at: Any, values: tuple[Tensor, ...]) -> Function | None:
        """What was compiled or loaded for such arguments; None where nothing was, or torch.compile is to decide."""
        entries = self.entries.get(at)
        if entries and not _torch_decides():
            scope = self._scope(w, s, at, values)
            for fits, run in entries:
                if fits(scope):
                    return run
        return None

    def __call__(self, w: Tensors, s: Tensors, at: Any, *values: Tensor) -> Any:
        """Run what fits these arguments; load or compile it first where nothing does."""
        run = self.ready(w, s, at, values)
        if run is None and not _torch_decides():
            run = self._loaded(w, s, at, values)
        return (run or self.compiled)(w, s, at, *values)

    def _scope(self, w: Tensors, s: Tensors, at: Any, values: tuple[Tensor, ...]) -> dict[str, Any]:
        """The function's local names, which guards are about."""
        scope: dict[str, Any] = {"w": w, "s": s, "at": at, **self.closure}
        scope.update(zip(self.names, values, strict=False))
        if self.rest:
            scope[self.rest] = values[len(self.names) :]
        return scope

    def _loaded(self, w: Tensors, s: Tensors, at: Any, values: tuple[Tensor, ...]) -> Function | None:
        """The compiled function for these arguments, from the disk or new; None where it is not to be kept."""
        count = sum(map(len, self.entries.values()))
        key = self._key(w, s, at, values) if count < RECOMPILE_LIMIT else None
        if key is None:
            return None
        path, scope = _folder() / key, self._scope(w, s, at, values)
        outside = {"function": self.function, **{name: x for name, x in self.closure.items() if callable(x)}}
        with torch._inductor.config.patch(self.options):  # the C++ compiler among them
            found = _load(path, self.function, outside)
        if found is None or not found._artifacts.guard_manager.check(scope):
            found = self._made((w, s, at, *values), path, outside)
        if found is None:
            return None
        self.entries.setdefault(at, []).append((found._artifacts.guard_manager.check, found.fn))
        return found.fn  # type: ignore[no-any-return]

    def _made(self, arguments: tuple[Any, ...], path: Path, outside: dict[str, Any]) -> Any:
        if not hasattr(self.compiled, "aot_compile"):  # torch was told not to compile
            return None
        w, s, _, *values = arguments
        with _without_gradients((*w.values(), *s.values(), *values)):
            try:
                found = self.compiled.aot_compile((arguments, {}))
            except Exception as error:  # what is wrong with the function itself torch.compile finds again
                _not_kept(error)
                return None
            try:
                data = type(found).serialize(found, outside).serialized_data
                if self._forgotten(data):
                    return self._made(arguments, path, outside)
                put(path, data)
            except Exception as error:
                _not_kept(error)
        return found

    def _forgotten(self, data: bytes) -> bool:
        """Whether torch found code in its cache whose kernels are gone; what is compiled next is made anew."""
        from nsam.backends.torch.native.graph_pass import NativeKernels
        from nsam.backends.torch.native.registry import lost

        if not lost(data) or getattr(self.options.get(PASS), "again", False):
            return False
        self.options[PASS] = NativeKernels(again=True)
        self.__dict__.pop("compiled", None)
        return True

    def _key(self, w: Tensors, s: Tensors, at: Any, values: tuple[Tensor, ...]) -> str | None:
        tensors = [*w.values(), *s.values(), *values]
        if any(type(x) not in (Tensor, nn.Parameter) or x.device.type != "cpu" for x in tensors):
            return None
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return None
        code = _code(self.function)
        if code is None:
            return None
        first: dict[int, int] = {}
        same = [first.setdefault(id(x), i) for i, x in enumerate(tensors)]
        layouts = [(tuple(x.shape), x.stride(), str(x.dtype), x.requires_grad, type(x).__name__) for x in tensors]
        options = {name: x.uuid() if hasattr(x, "uuid") else x for name, x in self.options.items()}
        found = (code, at, tuple(w), tuple(s), layouts, same, options, _settings(), _surroundings())
        return hashlib.sha256(repr(found).encode()).hexdigest()[:32]


@contextmanager
def _without_gradients(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Have tensors without gradients for a while: what is stored of a tensor has none, and then does not fit it."""
    held = [(x, x.grad) for x in tensors if x.is_leaf and x.grad is not None]
    try:
        for x, _ in held:
            x.grad = None
        with warnings.catch_warnings():  # torch looks at the gradients of all that it guards
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
            yield
    finally:
        for x, gradient in held:
            x.grad = gradient


def compiled_by_torch(function: Function, options: Mapping[str, Any]) -> Function:
    """In one graph with static shapes; a graph break is an error, not a slow program."""
    return torch.compile(function, fullgraph=True, dynamic=False, options=dict(options) or None)


def keepable() -> bool:
    """Whether this torch can store a compiled function, and caches are in use."""
    return (
        torch.__version__.startswith(VERSIONS)
        and torch._dynamo.config.enable_aot_compile
        and torch._inductor.config.fx_graph_cache
        and not torch._inductor.config.force_disable_caches
    )


def _torch_decides() -> bool:
    """Whether torch.compile was told when to compile."""
    dynamo: Any = torch._dynamo
    return bool(dynamo.eval_frame._stance.stance != "default" or dynamo.config.disable)


def _load(path: Path, function: Function, outside: dict[str, Any]) -> Any:
    from torch._dynamo.aot_compile import AOTCompiledFunction
    from torch._dynamo.convert_frame import get_compile_id
    from torch._dynamo.utils import get_metrics_context
    from torch._guards import CompileContext, compile_context

    from nsam.backends.torch.native.registry import lost

    try:
        data = path.read_bytes()
    except OSError:
        return None
    if lost(data):
        return None
    try:
        with compile_context(CompileContext(get_compile_id({}))), get_metrics_context():
            return AOTCompiledFunction.deserialize(data, function.__globals__, outside)
    except Exception as error:  # a damaged file, or one whose kernels are gone: it is written anew
        _LOG.warning("a compiled function could not be loaded, and is compiled again: %s", error)
        return None


@functools.cache
def _told(kind: str) -> None:
    _LOG.warning("compiled code is not kept for the next start, which will take longer: %s", kind)


def _not_kept(error: Exception) -> None:
    _told(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")


def _folder() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "nsam" / "functions"


def _settings() -> tuple[Any, ...]:
    """What is set in torch's compiler, and what it reads of torch's other settings."""
    configs: tuple[Any, ...] = (torch._inductor.config, torch._functorch.config, torch._dynamo.config)
    saved = [config.save_config_portable(ignore_private_configs=False) for config in configs]
    return (
        [sorted((name, _ordered(value)) for name, value in each.items()) for each in saved],
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )


def _ordered(value: Any) -> str:
    return repr(sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value)


@functools.cache
def _surroundings() -> str:
    """This package, torch, Python and the processor."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    found = hashlib.sha256(
        repr((torch.__version__, sys.version, platform.machine(), str(pick_vec_isa()), platform.processor())).encode()
    )
    for path in sorted(_files()):
        found.update(path.read_bytes())
    return found.hexdigest()


def _files() -> Iterator[Path]:
    for package in ("nsam.backends", "nsam.compiler"):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for ending in ("*.py", "*.h"):
                yield from Path(place).rglob(ending)


def _code(function: Function) -> str | None:
    """The content of a function and of all functions of its module that it reaches; None where it reaches more.

    Modules and functions of this package and of torch are not followed: they are among the surroundings.
    """
    module, seen, parts = inspect.unwrap(function).__globals__, set[int](), list[Any]()

    def add(value: Any) -> bool:
        value = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value
        if isinstance(value, _PLAIN):
            parts.append(value)
        elif inspect.isfunction(value) and value.__globals__ is module:
            if id(value) in seen:
                return True
            seen.add(id(value))
            parts.append((value.__qualname__, repr(value.__defaults__)))
            return code(value.__code__) and all(add(cell.cell_contents) for cell in value.__closure__ or ())
        else:
            name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
            parts.append(f"{name}.{getattr(value, '__qualname__', '')}")
            return isinstance(name, str) and name.split(".")[0] in ("torch", "nsam", "builtins", "__future__")
        return True

    def code(found: CodeType) -> bool:
        parts.append((found.co_code, found.co_names, found.co_varnames, found.co_freevars))
        for constant in found.co_consts:
            if isinstance(constant, CodeType):
                if not code(constant):
                    return False
            else:
                parts.append(repr(constant))
        return all(add(module[name]) for name in found.co_names if name in module)

    return repr(parts) if add(function) else None
