"""The outline of ONNX files: equal to what onnx itself reads, whole files only, and no weights are touched."""

import resource
import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from potstill.errors import BundleError, PotstillError, TamperedError
from potstill.onnx_inspect import FLOAT, FLOAT16, INT8, External, read_outline, without_weights
from tests import onnx_graphs


def outside(name, location, *, offset=None, length=None):
    """Make a tensor whose values are elsewhere."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3, 4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def everywhere():
    """Make a model with external tensors in every place where ONNX can have one."""
    node, info = helper.make_node, helper.make_tensor_value_info
    graph = onnx_graphs.classifier()
    branch = helper.make_graph([], "then", [], [info("t", TensorProto.FLOAT, [3, 4])], [outside("t", "in-subgraph")])
    values = TensorProto(data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL, name="s")
    values.external_data.add(key="location", value="in-sparse-values")
    indices = TensorProto(data_type=TensorProto.INT64, dims=[2], data_location=TensorProto.EXTERNAL)
    indices.external_data.add(key="location", value="in-sparse-indices")
    sparse = onnx.SparseTensorProto(values=values, indices=indices, dims=[3, 4])
    graph.graph.sparse_initializer.append(sparse)
    graph.graph.initializer.append(outside("i", "in-initializer", offset=4096, length=48))
    graph.graph.node.extend(
        [
            node("Constant", [], ["constant"], value=outside("inner", "in-constant")),
            node("Constant", [], ["thin"], sparse_value=sparse),
            node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch),
            node("Many", [], ["m"], domain="our.own", tensors=[outside("", "in-list-1"), outside("", "in-list-2")]),
            node("Deep", [], ["d"], domain="our.own", graphs=[branch]),
        ]
    )
    body = [node("Constant", [], ["y"], value=outside("", "in-function"))]
    function = helper.make_function("our.own", "Own", ["x"], ["y"], body, [helper.make_opsetid("", 20)])
    default = helper.make_attribute("table", outside("", "in-default"))
    function.attribute_proto.append(default)
    graph.functions.append(function)
    training = graph.training_info.add()
    training.algorithm.initializer.append(outside("a", "in-training"))
    training.initialization.initializer.append(outside("b", "in-start"))
    return graph


PLACES = {
    "in-subgraph",
    "in-sparse-values",
    "in-sparse-indices",
    "in-initializer",
    "in-constant",
    "in-list-1",
    "in-list-2",
    "in-function",
    "in-default",
    "in-training",
    "in-start",
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.onnx"


def test_operators_and_constants_are_those_that_onnx_reads(file):
    graph = onnx_graphs.classifier(onnx_graphs.dynamic_product)
    onnx.save(graph, file)
    outline = read_outline(file)
    assert [(node.op_type, list(node.inputs), list(node.outputs)) for node in outline.nodes] == [
        (node.op_type, list(node.input), list(node.output)) for node in graph.graph.node
    ]
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in outline.tensors] == [
        (tensor.name, tensor.data_type, list(tensor.dims)) for tensor in graph.graph.initializer
    ]
    assert outline.locations == frozenset()
    sizes = {tensor.name: tensor.size for tensor in outline.tensors}
    assert (sizes["words"], sizes["wc"], sizes["wsc"]) == (50 * 16, 16 * 2, 1)
    assert {tensor.data_type for tensor in outline.tensors if tensor.name.startswith("w")} == {FLOAT, INT8}


def test_every_place_for_weights_is_looked_at(file):
    file.write_bytes(everywhere().SerializeToString())
    outline = read_outline(file)
    assert outline.locations == PLACES
    assert next(tensor for tensor in outline.tensors if tensor.name == "i").external == External(
        "in-initializer", 4096, 48
    )


def test_the_value_of_a_constant_is_called_like_what_it_gives(file):
    file.write_bytes(everywhere().SerializeToString())
    by_location = {tensor.external.location: tensor.name for tensor in read_outline(file).tensors if tensor.external}
    assert by_location["in-constant"] == "constant"
    assert by_location["in-function"] == "y"
    assert by_location["in-subgraph"] == "t"
    assert by_location["in-list-1"] == ""


def test_a_location_counts_even_where_the_tensor_says_its_values_are_here(file):
    tensor = outside("w", "elsewhere")
    tensor.data_location = TensorProto.DEFAULT
    tensor.raw_data = bytes(48)
    graph = onnx_graphs.classifier()
    graph.graph.initializer.append(tensor)
    onnx.save(graph, file)
    assert read_outline(file).locations == {"elsewhere"}


def test_parts_of_a_graph_that_come_twice_are_joined_as_parsers_do(file):
    graph = onnx_graphs.classifier()
    late = onnx.ModelProto()
    late.graph.initializer.append(outside("w", "late"))
    file.write_bytes(graph.SerializeToString() + late.SerializeToString())
    assert len(onnx.load_model_from_string(file.read_bytes()).graph.initializer) == len(graph.graph.initializer) + 1
    assert read_outline(file).locations == {"late"}


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ([("location", "a"), ("location", "b")], "expected one location"),
        ([("offset", "0")], "expected one location"),
        ([("location", "a"), ("offset", "-1")], "expected two numbers"),
        ([("location", "a"), ("length", "many")], "expected two numbers"),
        ([("location", "a"), ("length", "²")], "expected two numbers"),
    ],
)
def test_a_place_that_readers_may_take_for_another_is_refused(file, entries, fault):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)
    graph = onnx_graphs.classifier()
    graph.graph.initializer.append(tensor)
    file.write_bytes(graph.SerializeToString())
    with pytest.raises(TamperedError, match=fault):
        read_outline(file)


def test_a_file_cut_at_any_byte_is_refused(file):
    graph = onnx_graphs.classifier(hidden=2)
    del graph.opset_import[1]  # nothing uses it, so nothing would be missed
    content = graph.SerializeToString()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(TamperedError, match=r"model\.onnx is cut short or damaged: .*; fetch it or export it"):
            read_outline(file)
        with pytest.raises(TamperedError):
            without_weights(file)
    file.write_bytes(content)
    assert len(read_outline(file).nodes) == 14


@pytest.mark.parametrize(
    "content",
    [
        b"not an ONNX file" * 50,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5\nsize 133093490\n",
        b'{"model_type": "bert"}',
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"<!DOCTYPE html>",
    ],
    ids=["text", "git-lfs", "json", "png", "zip", "html"],
)
def test_something_else_is_no_onnx_file(file, content):
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx is not an ONNX file: .*; expected a model as onnx writes it"):
        read_outline(file)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\x08\x0a\x3b", "byte 2 begins no field"),  # a group, which ONNX does not use
        (b"\x08\x0a\x02\x00", "byte 2 begins no field"),  # field 0
        (b"\x08\x0a\xba\x80\x80\x80\x10\x00", "byte 2 begins no field"),  # field 7, if the tag is cut to 32 bits
        (b"\x08" + b"\x80" * 10 + b"\x01", "does not end"),
        (b"\x08\x0a\x3a\x05\x00", "needs 4 bytes more than there are"),
        (b"\x08\x0a\x15\x00", "needs 3 bytes more than there are"),
        (b"\x08\x0a", "it has no graph"),
        (b"\x08\x0a\x3a\x00", "it has no operator set"),
        (b"\x08\x0a\x3a\x04\x0a\x02\x22\x05\x42\x00", "needs 5 bytes more than there are"),
        (b"\x08\x0a\x3a\x05\x0a\x03\x22\x01\xff\x42\x00", "invalid start byte"),
    ],
)
def test_the_fault_is_told(file, content, fault):
    file.write_bytes(content)
    with pytest.raises(TamperedError, match=fault):
        read_outline(file)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_change_of_bytes_hides_a_location_from_us_that_onnx_sees(tmp_path_factory, data):
    content = bytearray(everywhere().SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "fuzzed.onnx"
    file.write_bytes(content)
    try:
        ours = read_outline(file).locations
    except PotstillError:
        return  # refused: nobody opens it
    try:
        theirs = onnx.load_model_from_string(bytes(content))
    except Exception:
        return
    seen = {
        entry.value
        for tensor in onnx.external_data_helper._get_all_tensors(theirs)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert seen <= ours


@settings(max_examples=200, deadline=None, derandomize=True)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.onnx"
    file.write_bytes(content)
    with pytest.raises((TamperedError, BundleError)):
        read_outline(file)


def test_a_deeply_nested_graph_is_no_danger(file):
    inner = b""
    for _ in range(3000):  # graph -> node -> attribute -> graph
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            size = len(inner)
            length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
            inner = tag + length + inner
    size = len(inner)
    length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
    file.write_bytes(b"\x08\x0a\x3a" + length + inner + b"\x42\x00")
    assert len(read_outline(file).nodes) == 3000


def test_weights_are_not_read(file):
    """A gigabyte of weights, which takes no room on the disk, costs no more than a few pages of memory."""
    graph = onnx_graphs.classifier(hidden=2)
    big = TensorProto(name="big", data_type=TensorProto.FLOAT16, dims=[2**29])
    graph.graph.initializer.append(big)
    small = graph.SerializeToString()
    size = 2**30
    # Write the big tensor's raw_data by hand: field 9 of the tensor, inside field 5 of the graph, inside field 7.
    tensor_head = big.SerializeToString() + b"\x4a" + number(size)
    graph.graph.initializer.pop()
    rest = graph.graph.SerializeToString()
    graph_head = rest + b"\x2a" + number(len(tensor_head) + size) + tensor_head
    head = b"\x08\x0a\x42\x04\x0a\x00\x10\x14\x3a" + number(len(graph_head) + size) + graph_head
    assert len(small) < 4096
    with file.open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    outline, slim = read_outline(file), without_weights(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 2000  # all of it is 262,144 pages
    assert [(tensor.data_type, tensor.size) for tensor in outline.tensors if tensor.name == "big"] == [(FLOAT16, 2**29)]
    assert len(slim) < len(head)
    with file.open("r+b") as stream:
        stream.truncate(len(head) + size - 1)
    with pytest.raises(TamperedError, match="needs 1 bytes more"):
        read_outline(file)


def number(value):
    """Write a varint."""
    content = b""
    while value > 0x7F:
        content, value = content + bytes([value & 0x7F | 0x80]), value >> 7
    return content + bytes([value])


def test_a_graph_without_weights_is_the_same_graph(file):
    graph = onnx_graphs.classifier(hidden=64)
    onnx.save(graph, file)
    slim = onnx.load_model_from_string(without_weights(file))
    assert {tensor.name for tensor in slim.graph.initializer if tensor.raw_data} == {"last", "tokens", "wc"}
    whole = {tensor.name: tensor for tensor in graph.graph.initializer}
    assert np.array_equal(numpy_helper.to_array(slim.graph.initializer[1]), numpy_helper.to_array(whole["last"]))
    for tensor in slim.graph.initializer:
        tensor.raw_data = whole[tensor.name].raw_data
    assert slim == graph


def test_it_needs_nothing_but_python():
    code = "import sys, potstill.onnx_inspect; print({'onnx', 'google', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
