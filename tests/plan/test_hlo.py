"""What is read from the text of a compiled program: how often, how many bytes, among whom."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mgjax.devices import chips, sharding
from mgjax.plan import hlo, interconnect

# In the words of a TPU's compiler: small memory is S(1), an all-gather is spread over what runs beside it, a
# reduce-scatter is a fusion, and a loop ends where its counter says.
TPU = """\
HloModule jit_train, is_scheduled=true

%fused.start (p0: bf16[2,8]) -> bf16[16,8] {
  %p0 = bf16[2,8]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.1 = bf16[16,8]{1,0:T(8,128)S(1)} all-gather(%p0), channel_id=7, GATHERED, dimensions={0}
}

%fused.beside (p0: bf16[2,8], p1: f32[24,100]) -> f32[100] {
  %p0 = bf16[2,8]{1,0:T(8,128)} parameter(0)
  %p1 = f32[24,100]{1,0:T(8,128)} parameter(1)
  %all-gather.2 = bf16[16,8]{1,0:T(8,128)S(1)} all-gather(%p0), channel_id=7, GATHERED, dimensions={0}
  %zero = s32[] constant(0)
  %slice = f32[1,100]{1,0} dynamic-slice(%p1, %zero, %zero), dynamic_slice_sizes={1,100}
  ROOT %bitcast = f32[100]{0} bitcast(%slice)
}

%all-reduce-scatter.3 (p0: f32[16,8]) -> f32[1,8] {
  %p0 = f32[16,8]{1,0} parameter(0)
  %all-reduce.9 = f32[16,8]{1,0} all-reduce(%p0), channel_id=8, SCATTERED, to_apply=%add
  %here = s32[] constant(0)
  ROOT %part = f32[1,8]{1,0} dynamic-slice(%all-reduce.9, %here, %here), dynamic_slice_sizes={1,8}
}

%in_place (p0: f32[24,100], p1: f32[100]) -> f32[24,100] {
  %p0 = f32[24,100]{1,0} parameter(0)
  %p1 = f32[100]{0} parameter(1)
  %row = f32[1,100]{1,0} bitcast(%p1)
  %at = s32[] constant(3)
  ROOT %written = f32[24,100]{1,0} dynamic-update-slice(%p0, %row, %at, %at)
}

%condition (state: (s32[], f32[24,100])) -> pred[] {
  %state = (s32[]{:T(128)}, f32[24,100]{1,0}) parameter(0)
  %end = s32[]{:T(128)} constant(24)
  %count = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%count, %end), direction=LT
}

%body (state: (s32[], f32[24,100])) -> (s32[], f32[24,100]) {
  %state = (s32[]{:T(128)}, f32[24,100]{1,0}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%state), index=0
  %many = f32[24,100]{1,0} get-tuple-element(%state), index=1
  %weight = bf16[2,8]{1,0:T(8,128)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %start = bf16[16,8]{1,0:T(8,128)S(1)} fusion(%weight), kind=kCustom, calls=%fused.start
  %one = f32[100]{0:T(128)} fusion(%weight, %many), kind=kLoop, calls=%fused.beside
  %kept = f32[24,100]{1,0} fusion(%many, %one), kind=kLoop, calls=%in_place
  ROOT %next = (s32[]{:T(128)}, f32[24,100]{1,0}) tuple(%count, %kept)
}

ENTRY %main (x: f32[24,100], y: f32[16,8]) -> (f32[24,100], f32[1,8]) {
  %x = f32[24,100]{1,0} parameter(0)
  %y = f32[16,8]{1,0} parameter(1)
  %first = s32[]{:T(128)} constant(0)
  %begin = (s32[]{:T(128)}, f32[24,100]{1,0}) tuple(%first, %x)
  %loop = (s32[]{:T(128)}, f32[24,100]{1,0}) while(%begin), condition=%condition, body=%body
  %done = f32[24,100]{1,0} get-tuple-element(%loop), index=1
  %quick = (f32[16,8]{1,0:T(8,128)S(1)}, f32[16,8]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%y)
  %there = f32[16,8]{1,0:T(8,128)S(1)} copy-done(%quick)
  %scattered = f32[1,8]{1,0} fusion(%there), kind=kCustom, calls=%all-reduce-scatter.3
  ROOT %out = (f32[24,100]{1,0}, f32[1,8]{1,0}) tuple(%done, %scattered)
}
"""
TPU = TPU.replace("GATHERED", "replica_groups=mesh['axis_0'=8,'axis_1'=2], device_ids=([2,8]T(1,0)) {'axis_0'}")
TPU = TPU.replace("SCATTERED", "replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, use_global_device_ids=true")


def test_the_words_of_a_tpu():
    program = hlo.Program(TPU, 16)
    # In each of 24 passes a row of 400 bytes is read, written apart, read again and written in its place; then a copy
    # of 512 bytes into the small memory, and 32 bytes of a sum. Of the memory that is set aside, nothing moves.
    assert program.bytes_moved() == 24 * 4 * 400 + 512 + 32
    # Of these, what is written: a row apart and in its place; the copy goes to the small memory.
    found = {operation.name: (times, program.written(operation)) for operation, times in program.operations()}
    assert found == {
        **{"start": (24, 0), "one": (24, 400), "kept": (24, 400), "quick": (1, 0)},
        **{"weight": (24, 0), "scattered": (1, 32)},
    }
    gathered, scattered = sorted(program.collectives(), key=lambda one: one.kind)
    assert (gathered.kind, gathered.times, gathered.bytes) == ("all-gather", 24, 16 * 8 * 2)
    assert gathered.groups.tolist() == [list(range(8)), list(range(8, 16))]
    assert gathered.sent == 16 * 8 * 2 * 7 / 8
    assert (scattered.kind, scattered.times, scattered.bytes) == ("reduce-scatter", 1, 16 * 8 * 4)
    assert scattered.groups.tolist() == gathered.groups.tolist()


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups={}", [list(range(8))]),
    ],
)
def test_all_ways_to_write_groups(written, groups):
    assert hlo._groups(f", channel_id=1, {written}, dimensions={{0}}", 8).tolist() == groups


def test_a_program_of_this_machine():
    """Weights that are gathered in each pass of a loop, rows that stay where they are, a sum over all in the end."""
    mesh = sharding.make_mesh(2, 4, 1)

    def function(weights, x):
        def one(x, weight):
            return sharding.by_rows(jnp.tanh(x @ sharding.gathered("ffn/up/kernel", weight))), None

        return jnp.sum(jax.lax.scan(one, x, weights)[0])

    weights = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp", None)))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=sharding.rows(16, mesh))
    compiled = jax.jit(sharding.on_mesh(mesh, function)).lower(weights, x).compile()
    found = hlo.Program(compiled.as_text(), mesh.size).collectives()
    assert [(one.kind, one.times, one.bytes) for one in found if one.bytes > 4] == [("all-gather", 5, 64 * 64 * 4)]
    assert [one.groups.shape for one in found if one.bytes == 4] == [(1, 8)]
    lines = interconnect.traffic(found, mesh, chips.find("H100"))
    assert [(line.kind, line.axes) for line in lines] == [("all-gather", ("fsdp",)), ("all-reduce", ("data", "fsdp"))]
    assert lines[0].bytes == 5 * 64 * 64 * 4 * 3 / 4


class Device(SimpleNamespace):
    __hash__ = object.__hash__  # as devices have in a mesh


def torus(*shape):
    """A mesh of chips where they are, as the two or three axes of `shape` say."""
    places = np.moveaxis(np.indices(shape), 0, -1).reshape(-1, len(shape))
    return np.array([Device(coords=[*map(int, place)], slice_index=0) for place in places], dtype=object)


@pytest.mark.parametrize(
    ("chip", "shape", "mesh", "group", "links"),
    [
        ("TPU v5 lite", (16, 16), (16, 16), range(16), 2),  # a row that is a ring
        ("TPU v5 lite", (16, 16), (4, 64), range(64), 3),  # four rows of 16: rings one way, ends the other
        ("TPU v5 lite", (16, 16), (1, 256), range(256), 4),
        ("TPU v5 lite", (8, 8), (8, 8), range(8), 1),  # a row with two ends
        ("TPU v5", (8, 8, 8), (8, 64), range(64), 4),
        ("TPU v5", (8, 8, 8), (8, 64), range(0, 512, 64), 2),
    ],
)
def test_links_of_a_torus(chip, shape, mesh, group, links):
    devices = torus(*shape).reshape(*mesh, 1)
    found = chips.find(chip)
    one = hlo.Collective("all-gather", 1e9, np.array([group]), 3.0)
    (line,) = interconnect.traffic([one], Mesh(devices, sharding.AXES), found)
    assert line.seconds == pytest.approx(3 * 1e9 * (len(group) - 1) / len(group) / (links * found.link))


@pytest.mark.parametrize(("shape", "links"), [((16, 16), 2), ((8, 8), 1)])
def test_half_of_all_crosses_the_middle_when_all_send_to_all(shape, links):
    """A quarter of what a row of chips holds crosses its middle in each direction: by one link, in rings by two."""
    devices, chip = torus(*shape).reshape(*shape, 1), chips.find("TPU v5 lite")
    one = hlo.Collective("all-to-all", 1e9, np.array([range(shape[1])]), 1)
    (line,) = interconnect.traffic([one], Mesh(devices, sharding.AXES), chip)
    assert line.seconds == pytest.approx(1e9 * shape[1] / 4 / (links * chip.link))


def test_what_leaves_a_slice_or_a_node_is_slow():
    chip, devices = chips.find("TPU v6 lite"), torus(4, 4)
    for device in devices[8:]:
        device.slice_index = 1
    mesh = Mesh(devices.reshape(2, 8, 1), sharding.AXES)
    within, between = (hlo.Collective("all-reduce", 8e9, np.array([group]), 1) for group in (range(8), (0, 8)))
    assert interconnect.traffic([between], mesh, chip)[0].seconds == 8e9 / chip.network
    assert interconnect.traffic([within], mesh, chip)[0].seconds < 0.2
    gpu = chips.find("H100")
    within, between = (hlo.Collective("all-reduce", 8e9, np.array([group]), 1) for group in (range(8), (0, 8)))
    assert interconnect.traffic([between], mesh, gpu)[0].seconds == 8e9 / gpu.network
    assert interconnect.traffic([within], mesh, gpu)[0].seconds == 14e9 / gpu.link
