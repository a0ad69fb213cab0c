import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from persona.errors import ConfigError, DataError, FormatError
from recsys.serving.item_tables import BITS, KINDS, as_table, from_tensors

FLOATS = st.floats(-100, 100, width=32)


@settings(max_examples=60, deadline=None)
@given(values=hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 9)), elements=FLOATS))
@pytest.mark.parametrize("kind", BITS)
def test_no_number_is_off_by_more_than_a_step(kind, values):
    """Half a step of the code; what float16 rounds of the step comes on top at the far end of a row.

    A row whose step is too small for float16 is kept as one number.
    """
    table = as_table(values, kind)
    span = values.max(axis=1) - values.min(axis=1)
    step = span / (2 ** BITS[kind] - 1)
    smallest = float(np.finfo(np.float16).smallest_subnormal)
    allowed = 0.51 * step + 1e-3 * (span + np.abs(values).max(axis=1)) + 2 ** BITS[kind] * smallest
    assert (np.abs(table.rows(slice(None)) - values) <= allowed[:, None]).all()


@pytest.mark.parametrize(("kind", "operator"), [("int8", "FloatToFused8BitRowwiseQuantized"), ("int4", None)])
def test_it_is_as_near_as_torchrecs(kind, operator):
    import fbgemm_gpu  # noqa: F401  registers the operators

    values = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    ops = torch.ops.fbgemm
    if operator:
        theirs = ops.Fused8BitRowwiseQuantizedToFloat(getattr(ops, operator)(values))
    else:
        packed = ops.FloatToFusedNBitRowwiseQuantizedSBHalf(values, 4)
        theirs = ops.FusedNBitRowwiseQuantizedSBHalfToFloat(packed, 4)
    ours = as_table(values.numpy(), kind).rows(slice(None))
    error, reference = (np.abs(found - values.numpy()).mean() for found in (ours, theirs.numpy()))
    assert error <= 1.05 * reference


def test_sizes_of_a_row():
    values = np.random.default_rng(0).normal(size=(100, 32)).astype(np.float32)
    assert {kind: as_table(values, kind).nbytes / 100 for kind in KINDS} == {"float32": 128, "int8": 36, "int4": 20}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 5, 8])
def test_any_rows_can_be_read_and_tables_survive_their_tensors(kind, width):
    values = np.random.default_rng(0).normal(size=(70, width)).astype(np.float32)
    table = as_table(values, kind)
    assert (len(table), table.width) == (70, width)
    whole, index = table.rows(slice(None)), np.array([3, 69, 3])
    assert (table.rows(index) == whole[index]).all()
    assert (table.rows(slice(10, 20)) == whole[10:20]).all()
    again = from_tensors(table.tensors())
    assert type(again) is type(table)
    assert (again.rows(slice(None)) == whole).all()


def test_constant_and_empty_rows_are_kept():
    values = np.repeat(np.array([[0.0], [7.0], [-3.0]], dtype=np.float32), 4, axis=1)
    for kind in BITS:
        assert (as_table(values, kind).rows(slice(None)) == values).all()
        assert as_table(values[:0], kind).rows(slice(None)).shape == (0, 4)


def test_what_is_refused():
    values = np.ones((3, 4), dtype=np.float32)
    with pytest.raises(ConfigError, match="'int8'"):
        as_table(values, "int9")
    for wrong in (np.nan, np.inf, 1e6):
        with pytest.raises(DataError, match="cannot be quantised"):
            as_table(values * wrong, "int8")
    tensors = as_table(values, "int8").tensors()
    with pytest.raises(FormatError, match="which make none"):
        from_tensors({"codes": tensors["codes"]})
    with pytest.raises(FormatError, match="do not fit"):
        from_tensors({**tensors, "scale": tensors["scale"][:2]})
