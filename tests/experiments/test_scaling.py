"""The cost model gives back the constants that its rows were made of."""

import numpy as np
import pytest

pytest.importorskip("scipy")
from experiments.scaling import cost_model as model


def test_the_constants_are_found_again_and_one_host_sends_nothing():
    true = model.Constants(0.01, 1e-7, 1e-11, 1e-9, 1e-9, 1e-4, 1e8, 0.1)
    rows = []
    for population, width, steps in model.FITTED:
        row = {"population": population, "steps": steps, "num_params": width * (width + 10), "num_random": 4 * width}
        seconds = float(np.dot(true[:5], model.features(row, 1, "sums")))
        rows.append(row | {"processor_seconds": seconds, "seconds": 1.0, "seconds_low": 0.9, "seconds_high": 1.2})
    large = true.latency + (model.SIZES[1] - model.SIZES[0]) / true.bandwidth
    found = model.fitted(rows, [{"seconds_low": true.latency}, {"seconds_low": large}])
    np.testing.assert_allclose(found, true, rtol=1e-6)
    assert model.cost(found, rows[0] | {"collectives": 9}, 1, "sums")[1:] == (0, 0, 0)


def test_with_scalars_alone_what_is_sent_does_not_depend_on_the_network():
    constants = model.Constants(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    row = {"population": 8, "steps": 1, "num_random": 1, "collectives": 1}
    sent = {
        exchange: [model.cost(constants, row | {"num_params": n}, 2, exchange).transfer for n in (10, 1000)]
        for exchange in ("sums", "scalars")
    }
    assert sent["scalars"][0] == sent["scalars"][1] == 8 * model.ROW
    assert sent["sums"][1] - sent["sums"][0] == 8 * 990
