"""Random programs on batches, split over eight devices by jit and by shard_map, against one device. Run by
`test_transforms.py`, which sets the number of devices; its argument is how many programs."""

import sys

import hypothesis
import jax
import jax.numpy as jnp
import programs
import writings
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from properties import close

import lrpjax

P = PartitionSpec


SETTINGS = hypothesis.settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@hypothesis.given(programs.token_programs(most=2))
def check(program):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    f = jax.vmap(writings.function(program))
    xs = jnp.stack([jnp.asarray(program.x) * (1 + 0.1 * k) for k in range(8)])
    seeds = jnp.stack([jnp.asarray(program.seed)] * 8)
    one = lambda f: lrpjax.relevance(f, program.composite(), target=seeds)
    wanted = one(f)(xs)
    split = jax.device_put(xs, NamedSharding(mesh, P("rows")))
    close(jax.jit(one(f))(split), wanted)
    mapped = jax.shard_map(f, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))
    close(jax.jit(one(mapped))(xs), wanted)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    assert len(jax.devices()) == 8
    hypothesis.settings(SETTINGS, max_examples=int(sys.argv[1]))(check)()
