"""torch's private names: all in one file, each of them there and doing what the file says."""

from __future__ import annotations

import copy
import inspect
import operator
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

from pt2q.ir import torch_private
from pt2q.ir.torch_private import CHECKED, private

ROOT = Path(__file__).parents[2]
RULE = ROOT / ".ci" / "torch_private.py"
ON_INSTANCES = {  # attributes that objects have and their classes need not
    "torch.fx.graph.Graph._codegen": lambda: Graph(),
    "torch.fx.graph.Graph._find_nodes_lookup_table": lambda: Graph(),
    "torch.fx.graph.Graph._tracer_cls": lambda: Graph(),
    "torch.fx.graph_module.GraphModule._code": lambda: GraphModule(nn.Module(), Graph()),
    "torch.fx.node.Node._erased": lambda: Graph().placeholder("x"),
    "torch.nn.Module._forward_pre_hooks": lambda: nn.Module(),
    "torch.export.ExportedProgram._guards_code": lambda: torch.export.export(
        nn.ReLU(), (torch.zeros(1),)
    ),
    "torch.Tensor._version": lambda: torch.zeros(1),
    "torch.storage.UntypedStorage._cdata": lambda: torch.zeros(1).untyped_storage(),
}


@pytest.mark.parametrize("name", CHECKED)
def test_every_name_exists_in_this_torch(name: str) -> None:
    if name in ON_INSTANCES:
        assert hasattr(ON_INSTANCES[name](), name.rpartition(".")[2])
    else:
        assert private(name) is not None
    assert CHECKED[name].split(".")[0].isdigit()


def test_a_name_that_was_not_checked_is_refused() -> None:
    with pytest.raises(KeyError, match=r"torch\._dynamo\.config is not in CHECKED.*enter it there"):
        private("torch._dynamo.config")


def test_a_graph_has_its_index_again_when_its_code_is_written() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(operator.neg, (x,)))
    at_rest = torch_private.index_at_rest
    with pytest.raises(ValueError, match="code"), at_rest(graph), at_rest(graph):
        x.meta = {"val": 1}
        raise ValueError("code")
    assert graph.find_nodes(op="placeholder") == [x] and x.meta == {"val": 1}
    assert len(graph.find_nodes(op="call_function", target=operator.neg)) == 1


def test_the_names_that_are_wrapped() -> None:
    graph = Graph()
    node = graph.placeholder("x")
    assert not torch_private.is_erased(node)
    graph.erase_node(node)
    assert torch_private.is_erased(node)
    assert torch_private.schema_of(torch.ops.aten.add.Tensor).arguments[1].name == "other"
    assert torch_private.schema_of(len) is None
    assert torch_private.overload_name(torch.ops.aten.add.Tensor) == "Tensor"
    counted = torch.zeros(2)
    counted.add_(1)
    assert torch_private.version_of(counted) == 1
    with torch.inference_mode():
        assert torch_private.version_of(torch.zeros(2)) is None
    module = nn.Module()
    module.register_forward_pre_hook(print, with_kwargs=True)
    ((key, hook),) = torch_private.forward_pre_hooks(module).items()
    assert hook is print
    torch_private.remove_forward_pre_hook(module, key)
    assert not torch_private.forward_pre_hooks(module)


def test_composites_are_looked_up_once() -> None:
    utils = torch_private.private("torch._export.utils")
    before, expected = utils._materialize_cpp_cia_ops, utils._collect_all_valid_cia_ops()
    plain = torch._ops.Callable
    with torch_private.composites_looked_up_once():
        assert utils._materialize_cpp_cia_ops is not before
        assert torch._ops.Callable[..., int] is torch._ops.Callable[..., int]
        assert [utils._collect_all_valid_cia_ops() for _ in range(2)] == [expected] * 2
        with torch.library._scoped_library("pt2q_tests", "DEF") as library:
            library.define("composed(Tensor x) -> Tensor")
            library.impl("composed", torch.sin, "CompositeImplicitAutograd")
            new = utils._collect_all_valid_cia_ops() - expected
            assert new == {torch.ops.pt2q_tests.composed.default}
    assert utils._materialize_cpp_cia_ops is before and torch._ops.Callable is plain


def test_translations_are_read_once() -> None:
    pytest.importorskip("onnxscript")
    apis = private("torch.onnx._internal._lazy_import.onnxscript_apis")
    schemas = private("torch.onnx._internal.exporter._schemas")
    expected = [meta.qualified_name for meta in apis.get_torchlib_ops()]
    assert len(expected) > 400
    signature_of = schemas.op_signature_from_function
    with torch_private.translations_read_once():
        one, other = apis.get_torchlib_ops(), apis.get_torchlib_ops()
        assert one is not other and all(a is b for a, b in zip(one, other, strict=True))
        assert [meta.qualified_name for meta in one] == expected
        function = one[0].function
        found = schemas.op_signature_from_function(function, "__traced", function.__name__)
        same = schemas.op_signature_from_function(function, "__traced", function.__name__)
        assert found is same
        assert str(found) == str(signature_of(function, "__traced", function.__name__))
    assert schemas.op_signature_from_function is signature_of
    assert vars(apis).keys() == {"_name", "_module"}


def doubling(module: GraphModule) -> None:
    """Have a module give twice what it gave."""
    (output,) = module.graph.find_nodes(op="output")
    with module.graph.inserting_before(output):
        output.args = (module.graph.call_function(operator.mul, (output.args[0], 2)),)
    module.recompile()


def test_code_is_compiled_when_asked() -> None:
    recompile = GraphModule.recompile
    with torch_private.compiled_when_asked():
        module = torch.fx.symbolic_trace(nn.ReLU())
        doubling(module)
        assert not {"_code", "_lineno_map"} & vars(module).keys()
        assert "mul" in module.code
        doubling(module)
        assert list(inspect.signature(module.forward).parameters) == ["input"]
        doubling(module)
        assert module(torch.ones(1)) == 8
        other = torch.fx.symbolic_trace(nn.ReLU())
        thread = threading.Thread(target=doubling, args=(other,))
        thread.start()
        thread.join()
        assert "mul" in vars(other)["_code"]
        doubling(module)
        copied = copy.deepcopy(module)
    assert GraphModule.recompile is recompile
    assert module(torch.ones(1)) == copied(torch.ones(1)) == 16
    doubling(module)
    assert "_code" in vars(module) and module(torch.ones(1)) == 32


def run_rule(*folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RULE), *map(str, folders)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_no_other_file_names_them() -> None:
    result = run_rule()
    assert (result.returncode, result.stdout) == (0, ""), result.stdout


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from torch.utils import _pytree", "torch.utils._pytree"),
        ("from torch._subclasses import FakeTensor", "torch._subclasses.FakeTensor"),
        ("import torch._dynamo.config", "torch._dynamo.config"),
        ("is_overload = isinstance(target, torch._ops.OpOverload)", "torch._ops"),
        ("schema = node.target._schema", "_schema"),
        ("found = getattr(node.target, '_schema', None)", "_schema"),
        ("graph._codegen = None", "_codegen"),
    ],
)
def test_the_rule_finds_a_private_name(tmp_path: Path, line: str, name: str) -> None:
    (tmp_path / "module.py").write_text(f"x = 1\n{line}\n")
    result = run_rule(tmp_path)
    assert result.returncode == 1
    assert f"module.py:2: {name}" in result.stdout and "ir/torch_private.py" in result.stdout


def test_the_rule_leaves_alone_what_is_ours(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "class A:\n    _x = 1\n    def _f(self):\n        self._y = self._buffers\n"
        "def g(a):\n    return a._x, a._y, a._f(), a.__dict__\n"
    )
    assert run_rule(tmp_path).returncode == 0
