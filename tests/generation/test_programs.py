"""The decode step as accelerators get it: counts of StableHLO, by layer, lowered for platforms that are not there.

What their compilers make of it is read by benchmarks/programs.py.
"""

import collections
import dataclasses
import functools

import jax
import jaxtyping
import pytest

from mgjax.checkpoints.random_weights import DEBUG
from mgjax.devices import sharding
from mgjax.generation.sampling import decode_steps
from mgjax.kernels import cpu
from mgjax.plan.decoding import Workload, step_arguments

# As `mgjax.load(weights=...)` has them there.
WORKLOADS = {
    "float32": Workload(1, 5.0, "float32"),
    "bfloat16": Workload(1, 5.0, "bfloat16"),
    "int8": Workload(1, 5.0, "bfloat16", weights="int8"),
}
COUNTED = ("dot_general", "dynamic_update_slice", "transpose", "concatenate", "pad", "sort", "while")


@pytest.fixture(autouse=True)
def shapes_in_place_of_arrays():
    """The dataclasses hold shapes here, which are no arrays."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@functools.cache
def program(platform, weights, num_layers):
    """All operations of the program, those of a function as often as it is called, and the shape of cached keys."""
    config = dataclasses.replace(DEBUG, lm=dataclasses.replace(DEBUG.lm, num_layers=num_layers))
    arguments = step_arguments(config, WORKLOADS[weights], sharding.make_mesh(1, 1, 1, jax.devices()[:1]))
    module = decode_steps.trace(*arguments).lower(lowering_platforms=(platform,)).compiler_ir("stablehlo")
    functions = {function.attributes["sym_name"].value: function for function in module.body.operations}

    def inside(operation):
        for region in operation.regions:
            for block in region.blocks:
                for inner in block.operations:
                    yield inner.operation
                    yield from inside(inner.operation)
                    if inner.operation.name == "func.call":
                        yield from inside(functions[inner.attributes["callee"].value].operation)

    operations = list(inside(functions["main"].operation))
    return module, operations, arguments[3].cache.layers[0].key.shape  # the module holds the operations' memory


def name(operation):
    return operation.name.split(".")[1]


def kind(value):
    return str(value.type.element_type)


def each_layer_and_the_rest(count, platform, weights):
    two, three = (collections.Counter(count(*program(platform, weights, num_layers)[1:])) for num_layers in (2, 3))
    layer = three - two
    return layer, two - layer - layer


def counted(operations, cached):
    return [name(operation) for operation in operations if name(operation) in COUNTED]


@pytest.mark.parametrize("weights", WORKLOADS)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_operations_of_a_step(platform, weights):
    layer, rest = each_layer_and_the_rest(counted, platform, weights)
    # Products with six kernels (queries, keys and values at once, out; the query of cross-attention, its out; up and
    # down), and of both attentions with keys and values; none makes keys and values of the condition. The transposes
    # are those of keys and values to the order of the products, of which they become a part, and of new ones back.
    assert layer == {"dot_general": 6 + 2 + 2, "dynamic_update_slice": 2, "transpose": 8}
    # The heads; tokens; the loop over steps: the draw has none, and sorts nothing. Joined are rows and tables of a few
    # numbers.
    assert rest == {"dot_general": 1, "dynamic_update_slice": 1, "while": 1, "concatenate": 5}


def cache_sized(operations, cached):
    single = [operation for operation in operations if len(operation.results) == 1]
    return [name(operation) for operation in single if sorted(operation.results[0].type.shape) == sorted(cached)]


@pytest.mark.parametrize("weights", WORKLOADS)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_nothing_copies_the_cache(platform, weights):
    """What has a result of its size: writing a step in place, for keys and values, and their order in the products."""
    layer, rest = each_layer_and_the_rest(cache_sized, platform, weights)
    expected = {"dynamic_update_slice": 2, "transpose": 2}
    if platform == "tpu":  # what is written has a layout; what is attended to is chosen, in the products
        expected |= {"custom_call": 2, "call": 2, "select": 2, "broadcast_in_dim": 4}
    assert (layer, rest) == (expected, {})


def conversions(operations, cached):
    arrays = [operation for operation in operations if name(operation) == "convert" and operation.results[0].type.rank]
    kinds = [(kind(operation.operands[0]), kind(operation.results[0])) for operation in arrays]
    return [pair for pair in kinds if set(pair) <= {"f32", "bf16", "i8"}]


def factors(operations, cached):
    products = [operation for operation in operations if name(operation) == "dot_general"]
    return [tuple(map(kind, operation.operands)) for operation in products]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_types_of_numbers(platform):
    both = {
        weights: [each_layer_and_the_rest(count, platform, weights)[0] for count in (conversions, factors)]
        for weights in WORKLOADS
    }
    # Each norm is float32 inside (x, scale, bias; back), and so are the two softmaxes.
    norms = {("bf16", "f32"): 3 * 3, ("f32", "bf16"): 3 + 2}
    assert both["float32"] == [{}, {("f32", "f32"): 10}]
    assert both["bfloat16"] == [norms, {("bf16", "bf16"): 10}]
    # And each kernel, and the sums of its products, which are multiplied by scales.
    assert both["int8"] == [norms | {("i8", "bf16"): 6, ("f32", "bf16"): 5 + 6}, {("bf16", "bf16"): 10}]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_int8_becomes_bfloat16_in_the_product(platform):
    """The compilers make it a part of the product then, which reads int8."""
    _, operations, _ = program(platform, "int8", 2)
    kernels = [op for op in operations if name(op) == "convert" and kind(op.operands[0]) == "i8"]
    assert len(kernels) == 2 * 6 + 1
    assert {use.owner.name for kernel in kernels for use in kernel.results[0].uses} == {"stablehlo.dot_general"}


@pytest.mark.parametrize("weights", WORKLOADS)
def test_kernels_of_the_cpu_are_in_its_own_programs(weights):
    def called(platform):
        operations = program(platform, weights, 2)[1]
        calls = [operation for operation in operations if name(operation) == "custom_call"]
        return {operation.attributes["call_target_name"].value for operation in calls}

    assert not called("cuda")
    assert called("tpu") == {"LayoutConstraint"}
    expected = set(cpu.NAMES) if weights == "int8" else {"mgjax_attend"}
    assert called("cpu") == (expected if cpu.available() else set())
