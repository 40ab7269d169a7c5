"""Data without test examples, for runs whose scores select settings.

The validation examples take the place of the test examples before anything else sees the data. No code of a simulation,
at the server or at a merchant, can therefore compute a test score, whatever it evaluates. Real sites read their own
data, so that an experiment with such clients is refused.
"""

from dataclasses import replace

from fed_distill.data.examples import FederatedData


def without_test(data: FederatedData) -> FederatedData:
    """Replace every test part by the validation part of the same participants; drop cold-start merchants, whose
    examples are all held out for the test, and true effects, which are of test customers."""
    merchants = {name: replace(merchant, test=merchant.valid) for name, merchant in data.merchants.items()}
    return replace(
        data,
        merchants=merchants,
        test=data.valid,
        ranking_test=data.ranking_valid,
        cold=None,
        true_effects=None,
        account={**data.account, "scored_on": "validation examples; the test examples were not read into the run"},
    )
