"""TensorRT's real parser and builder on a machine without a GPU, for tests.

`tensorrt` has its libraries in wheels that only NVIDIA's package index carries. Two wheels of the ordinary index do
instead: `tensorrt-cu13-bindings` is the Python package, and `onnxruntime-ep-nv-tensorrt-rtx-cu13` brings TensorRT for
RTX, which has the same C++ interface and builds without a GPU. Between the two lie three libraries of the names that
the bindings ask for; they hand each call on, with the version that TensorRT for RTX expects. They are compiled here.

What is built so is a plan of TensorRT for RTX: good for tests of the exporter, not for running or measuring. Both
wheels are under NVIDIA's own licence: they are installed as development extras and never copied.
"""

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from covidseg_runtime.engines.plan_cache import GpuIdentity

GPU = GpuIdentity("NVIDIA Imagined 1000", "8.9", "13.0")

_BINDINGS, _LIBRARIES = "tensorrt_bindings", "onnxruntime_ep_nv_tensorrt_rtx"
_REAL = ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1")
_ASKED_FOR = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")

# One source for all three: the bindings take each function from whichever library they meet first.
_HAND_ON = r"""
#include <dlfcn.h>

#define CORE "%s"
#define PARSER "%s"
#define CALL(library, type, name) ((type)dlsym(dlopen(library, RTLD_LAZY | RTLD_NOLOAD), name))

typedef int (*Version)(void);
typedef void *(*Registry)(void);
typedef void *(*RegistryOf)(int);
typedef void *(*Maker)(void *, int);
typedef void *(*MakerOfTwo)(void *, void *, int);

int getInferLibVersion(void) { return CALL(CORE, Version, "getInferLibVersion")(); }
int getNvOnnxParserVersion(void) { return CALL(PARSER, Version, "getNvOnnxParserVersion")(); }
void *getPluginRegistry(void) { return CALL(CORE, Registry, "getPluginRegistry")(); }
void *getBuilderPluginRegistry(int kind) { return CALL(CORE, RegistryOf, "getBuilderPluginRegistry")(kind); }
int initLibNvInferPlugins(void *logger, const char *space) { return 1; }

#define MAKE(name, library, version)                                                                   \
    void *name(void *logger, int bindings) { return CALL(library, Maker, #name)(logger, version()); }
#define MAKE_OF_TWO(name, library, version)                                                            \
    void *name(void *of, void *logger, int bindings) { return CALL(library, MakerOfTwo, #name)(of, logger, version()); }

MAKE(createInferBuilder_INTERNAL, CORE, getInferLibVersion)
MAKE(createInferRuntime_INTERNAL, CORE, getInferLibVersion)
MAKE_OF_TWO(createInferRefitter_INTERNAL, CORE, getInferLibVersion)
MAKE_OF_TWO(createNvOnnxParser_INTERNAL, PARSER, getNvOnnxParserVersion)
MAKE_OF_TWO(createNvOnnxParserRefitter_INTERNAL, PARSER, getNvOnnxParserVersion)
"""


@contextmanager
def importable_tensorrt(name: str = "tensorrt") -> Iterator[ModuleType]:
    """Let `import tensorrt` (or `tensorrt_rtx`) find TensorRT inside the block, and nowhere else."""
    package = load_tensorrt()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, package)
        yield package


@functools.cache
def load_tensorrt() -> ModuleType:
    """The bindings with working libraries under them; loaded once a process, without the name `tensorrt`."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("NVIDIA's wheels of these tests are for Linux on x86-64")
    spec = find_spec(_LIBRARIES)
    if spec is None or spec.origin is None or find_spec(_BINDINGS) is None:
        raise RuntimeError("TensorRT's tests need two wheels of NVIDIA's: pip install -e '.[dev]' -c constraints.txt")
    for library in _REAL:
        ctypes.CDLL(str(next(Path(spec.origin).parent.glob(f"{library}.*"))), mode=ctypes.RTLD_LOCAL)
    # A library that is loaded is found by its name; its file may go.
    with tempfile.TemporaryDirectory() as folder:
        for library in _ASKED_FOR:
            ctypes.CDLL(str(_compile(library, Path(folder))), mode=ctypes.RTLD_GLOBAL)
    return import_module(_BINDINGS)


def _compile(library: str, folder: Path) -> Path:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise RuntimeError("TensorRT's tests need a C compiler: install gcc, or name one in CC")
    source, path = folder / "hand_on.c", folder / library
    source.write_text(_HAND_ON % _REAL)
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(path), str(source), "-ldl"]
    subprocess.run(command, check=True)  # noqa: S603 - the compiler on our own source
    return path
