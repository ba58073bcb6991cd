import collections
import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from jax.sharding import PartitionSpec as P

from mgjax.checkpoints.tables.shapes import model_shapes
from mgjax.config.conditioning import ClapConditionConfig, StyleConfig
from mgjax.config.model import Fused, LMConfig, ModelConfig
from mgjax.devices import sharding

# What the table makes of musicgen-small on a mesh of 2 x 2 x 2, one line for each kind of array.
GOLDEN = {
    "lm/embed/embedding": P(None, None, "fsdp"),
    "lm/head/kernel": P("fsdp", None, "model"),
    "lm/out_norm/scale": P(None),
    "lm/layer0/self_norm/bias": P(None),
    "lm/layer0/self_attn/qkv/kernel": P("fsdp", None, "model", None),
    "lm/layer0/self_attn/out/kernel": P("model", None, "fsdp"),
    "lm/layer0/cross_attn/query/kernel": P("fsdp", "model", None),
    "lm/layer0/cross_attn/kv/kernel": P("fsdp", None, "model", None),
    "lm/layer0/cross_attn/out/kernel": P("model", None, "fsdp"),
    "lm/layer0/ffn/up/kernel": P("fsdp", "model"),
    "lm/layer0/ffn/down/kernel": P("model", "fsdp"),
    "lm/text_proj/kernel": P(None, "fsdp"),
    "text/embed/embedding": P("model", "fsdp"),
    "text/relative_bias/embedding": P(None, None),
    "text/block0/attn/query/kernel": P("fsdp", "model", None),
    "text/block0/attn/out/kernel": P("model", None, "fsdp"),
    "text/block0/ffn/up/kernel": P("fsdp", "model"),
    "text/block0/ffn/down/kernel": P("model", "fsdp"),
    "codec/params/encoder/conv_in/kernel": P(None, None, None),
    "codec/params/encoder/block3/down/kernel": P(None, "fsdp", None),
    "codec/params/encoder/lstm/layer0/hidden_kernel": P("fsdp", None),
    "codec/params/decoder/block0/up/kernel": P(None, "fsdp", None),
    "codec/codebooks/embed": P(None, "fsdp", None),
    "style/params/encoder/embed/kernel": P(None, "fsdp"),
    "style/params/encoder/layer7/qkv/kernel": P("fsdp", None, "model", None),
    "style/params/encoder/layer7/out/kernel": P("model", None, "fsdp"),
    "style/params/encoder/layer7/up/kernel": P("fsdp", "model"),
    "style/params/encoder/layer7/down/kernel": P("model", "fsdp"),
    "style/batch_stats/mean": P(None),
    "style/codebooks/embed": P(None, "fsdp", None),
    "style/features/conv1/kernel": P(None, None, "fsdp"),
    "style/features/positions/conv/kernel": P(None, None, "fsdp"),
    "style/features/features_proj/kernel": P(None, "fsdp"),
    "style/features/layer0/attn/out/kernel": P("model", None, "fsdp"),
    "style/features/layer0/ffn/up/kernel": P("fsdp", "model"),
    "clap/text/params/roberta/positions/embedding": P("model", "fsdp"),
    "clap/text/params/roberta/embed/embedding": P(None, "fsdp"),  # 50,265 tokens
    "clap/text/params/roberta/block0/attn/query/kernel": P("fsdp", "model", None),
    "clap/text/params/roberta/pool/kernel": P(None, "fsdp"),
    "clap/text/params/projection/up/kernel": P(None, "fsdp"),
    "clap/audio/params/htsat/stage3_merge/reduce/kernel": P(None, "fsdp"),
    "clap/codebooks/embed": P(None, "fsdp", None),
}
# Every encoder that there is.
FULL = ModelConfig(
    LMConfig(conditions=(Fused("style", 512, "prefix"), Fused("text", 768), Fused("clap", 512))),
    style=StyleConfig(),
    clap=ClapConditionConfig(),
)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(2, 2, 2)


@pytest.fixture(scope="module")
def shapes():
    return model_shapes(FULL)


@pytest.mark.parametrize("path", GOLDEN)
def test_musicgen_small_is_split_as_written_down(mesh, shapes, path):
    assert sharding.spec(path, shapes[path], mesh) == GOLDEN[path]


def test_nothing_large_stays_whole_under_fsdp(shapes):
    fsdp = sharding.make_mesh(1, 8, 1)
    whole = {path for path, shape in shapes.items() if not any(sharding.spec(path, shape, fsdp))}
    assert max(4 * np.prod(shapes[path]) for path in whole) < 2**20


def test_a_tree_is_placed_by_its_paths(mesh, shapes):
    tree = unflatten_dict({path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}, sep="/")
    placed = sharding.shardings(tree, mesh)
    assert placed["lm"]["layer3"]["ffn"]["up"]["kernel"].spec == P("fsdp", "model")


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("params/lm/layers/ffn/up/kernel", (24, 1024, 4096), P(None, "fsdp", "model")),
        ("optimizer/1/0/nu/lm/layers/self_attn/qkv/kernel", (24, 8, 3, 8, 8), P(None, "fsdp", None, "model", None)),
        ("optimizer/1/0/nu/lm/head/kernel", (), P()),  # a number that an optimiser keeps for each parameter
        ("params/discriminator/stft1024/conv1/kernel", (3, 9, 32, 32), P(None, None, None, "fsdp")),
        ("params/discriminator/stft1024/score/kernel", (3, 3, 32, 1), P(None, None, None, None)),
        ("optimizer/discriminator/0/mu/scale0/conv1/kernel", (41, 4, 64), P(None, None, "fsdp")),
        ("extra/codebooks/embed_avg", (4, 2048, 128), P(None, "fsdp", None)),
        ("extra/codebooks/cluster_size", (4, 2048), P(None, None)),
    ],
)
def test_rules_are_about_the_last_dimensions(mesh, path, shape, expected):
    assert sharding.spec(path, shape, mesh) == expected


def test_paths_go_through_fields_and_indices():
    tree = {"a": [collections.namedtuple("Pair", "b c")(1, {"d": 2})]}
    paths = [sharding.path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert paths == ["a/0/b", "a/0/c/d"]


def test_what_does_not_divide_stays_whole(mesh):
    three = sharding.make_mesh(1, 1, 8)
    heads = model_shapes(ModelConfig(lm=LMConfig(dim=1020, num_heads=15)))["lm/layer0/self_attn/qkv/kernel"]
    assert sharding.spec("lm/layer0/self_attn/qkv/kernel", heads, three) == P("fsdp", None, None, None)


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(8, P(("data", "fsdp"))), (2, P(("data",))), (6, P(("data",))), (3, P())]
)
def test_rows_are_spread_as_far_as_they_divide(mesh, num_rows, expected):
    assert sharding.rows(num_rows, mesh).spec == expected


def test_a_mesh_must_use_every_device():
    assert dict(sharding.make_mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "model": 2}
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "model": 1}
    assert dict(sharding.make_mesh(-1, 64, 2).shape) == {"data": 1, "fsdp": 4, "model": 2}
    with pytest.raises(ValueError, match="does not make 8 devices"):
        sharding.make_mesh(3, 1, 1)
    with pytest.raises(ValueError, match="does not make 8 devices"):
        sharding.make_mesh(-1, 3, 1)


class Client:
    """Of process 1."""

    platform = "cpu"

    def process_index(self):
        return 1


@dataclasses.dataclass(frozen=True)
class Device:
    """One that is not there: of 4 to a host, 2 hosts to a slice."""

    id: int
    client: Client = dataclasses.field(default=Client(), repr=False)
    platform = device_kind = "cpu"

    @property
    def process_index(self):
        return self.id // 4

    @property
    def slice_index(self):
        return self.id // 8


@pytest.mark.parametrize(
    ("sizes", "slices", "apart"),
    [((4, 2, 4), 4, 4), ((-1, 4, 2), 4, 4), ((2, 4, 4), 4, 2), ((1, 8, 2), 2, 1), ((8, 1, 1), 1, 1), ((2, 1, 8), 2, 2)],
)
def test_the_slow_network_between_slices_is_for_data_and_then_fsdp(sizes, slices, apart):
    """`apart` slices hold other parts of `data`, and what is left of them other parts of `fsdp`."""
    mesh = sharding.make_mesh(*sizes, devices=[Device(i) for i in range(8 * slices)])
    where = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert np.all(where == where[:, :, :1]), "model stays within a slice"
    by_data = [sorted(set(part.flat)) for part in where]
    assert len({tuple(part) for part in by_data}) == apart
    assert all(len(part) == slices // apart for part in by_data)
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8 * slices))


def test_a_mesh_that_does_not_fit_the_slices_is_reported():
    devices = [Device(i) for i in range(16)]
    with pytest.raises(ValueError, match=r"1 x 1 x 16 does not fit 2 slices of 8 devices: model has to stay within"):
        sharding.make_mesh(1, 1, 16, devices=devices)
    with pytest.raises(ValueError, match=r"slices of \[4, 8\]: a mesh needs slices of one size"):
        sharding.make_mesh(devices=devices[:12])


@pytest.mark.parametrize(
    ("sizes", "order", "expected"),
    [
        ((8, 1, 1), range(8), [8, 9, 10, 11, 12, 13, 14, 15]),
        ((2, 2, 2), range(8), [8, 9, 10, 11, 12, 13, 14, 15]),
        ((4, 2, 1), [0, 1, 4, 5, 2, 3, 6, 7], [4, 5, 6, 7, 12, 13, 14, 15]),  # as a square of TPUs lies
        ((2, 1, 4), [0, 1, 4, 5, 2, 3, 6, 7], list(range(16))),  # model goes over both hosts
    ],
)
def test_a_host_reads_the_rows_of_its_devices(sizes, order, expected):
    """Of two hosts, this is the second."""
    devices = [Device(i) for i in order]
    mesh = jax.sharding.Mesh(np.array(devices).reshape(sizes), sharding.AXES)
    assert sharding.local_rows(16, mesh) == expected
    spread = sizes[0] * sizes[1]
    with pytest.raises(ValueError, match=f"7 rows cannot be spread over data x fsdp = {spread} devices on several"):
        sharding.local_rows(7, mesh)


@pytest.mark.parametrize("num_rows", [16, 6])
def test_rows_go_where_they_belong(mesh, num_rows):
    rows = np.random.default_rng(0).random((num_rows, 3))
    placed = sharding.place_rows(rows, mesh)
    assert placed.sharding == sharding.rows(num_rows, mesh)
    np.testing.assert_array_equal(placed, rows.astype(placed.dtype))
