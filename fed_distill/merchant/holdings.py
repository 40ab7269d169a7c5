"""A site's data, and cached students and encoded texts: its merchants' examples and the proxy set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.config import DPSGDConfig, Experiment, FreezingConfig
from fed_distill.data.augmentation import augmented
from fed_distill.data.examples import Examples, MerchantData
from fed_distill.data.fingerprint import examples_fingerprint
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.models import predict
from fed_distill.models.base import TextModel
from fed_distill.models.freezing import freeze, freeze_base, matched
from fed_distill.models.prediction import PreparedExamples, predict_prepared, prepare
from fed_distill.models.weights import Weights
from fed_distill.seeds import Part
from fed_distill.text.density_ratio import kulsif
from fed_distill.text.encoded import Encoded
from fed_distill.text.similarity import bags, largest_cosine
from fed_distill.training.plan import Predicted, References
from fed_distill.training.references import predicted
from fed_distill.transport.requests import TrainRequest, blueprint_of, built_from, unpacked


@dataclass
class Holdings:
    """merchants: data by name. proxy: the whole proxy set, or the candidates for the teacher's choice."""

    experiment: Experiment
    merchants: Mapping[str, MerchantData]
    proxy: Examples
    _students: dict[tuple[str, bool], TextModel] = field(default_factory=dict, init=False)
    _encoded: dict[tuple[str, str], Encoded] = field(default_factory=dict, init=False)
    _prepared_proxy: dict[tuple[str, bytes], PreparedExamples] = field(default_factory=dict, init=False)
    _proxy_bags: dict[bytes, sparse.csr_array] = field(default_factory=dict, init=False)
    _expertise: dict[tuple[str, bytes], Tensor] = field(default_factory=dict, init=False)

    def student(self, blueprint: str, protected: bool = False) -> TextModel:
        """Return the student of a blueprint, with frozen weights; ``protected``: those of private training."""
        if (blueprint, protected) not in self._students:
            student = built_from(blueprint)
            if protected:
                settings = mechanism_of(self.experiment).settings
                freeze(student, settings.freeze if isinstance(settings, FreezingConfig) else None)
                if isinstance(settings, DPSGDConfig):
                    matched(student, settings.rate_scales, "privacy.rate_scales")
            self._students[blueprint, protected] = student if protected else freeze_base(student)
        return self._students[blueprint, protected]

    def proxy_of(self, request: TrainRequest) -> Examples:
        """Return the proxy set of a request: all examples, or those chosen by the server's teacher."""
        if not request.proxy:
            return self.proxy
        return self.proxy.take(np.flatnonzero(unpacked(request.proxy, len(self.proxy))))

    def texts_of(self, request: TrainRequest) -> Callable[[str], str]:
        """Return a function: name of a merchant -> fingerprint of its labelled examples and the request's proxy set."""
        proxy = cache(lambda: examples_fingerprint(self.proxy_of(request).unlabeled()))
        return lambda merchant: examples_fingerprint(self.merchants[merchant].train) + proxy()

    def encoded_proxy(self, student: TextModel, request: TrainRequest) -> Encoded:
        """Return the proxy set of a request, encoded for the student."""
        return self._encode(student, f"proxy {request.proxy.hex()}", self.proxy_of(request))

    def predict_proxy(self, student: TextModel, request: TrainRequest) -> Tensor:
        """Return a student's class probabilities on the proxy set of a request, float32 ``[proxy, classes]``."""
        key = (blueprint_of(student), request.proxy)
        if key not in self._prepared_proxy:
            self._prepared_proxy[key] = prepare(student, self.encoded_proxy(student, request))
        return predict_prepared(student, self._prepared_proxy[key])

    def encoded_train(self, student: TextModel, merchant: str, seed: Part, *purpose: Part) -> Encoded:
        """Return a merchant's training examples, encoded, and augmented with draws of ``seed`` and ``purpose``."""
        return self._varied(student, f"train of {merchant}", self.merchants[merchant].train, seed, *purpose)

    def unlabeled(
        self,
        student: TextModel,
        merchant: str,
        wanted: Mapping[str, Predicted],
        weights: Mapping[str, Weights],
        seed: Part,
        *purpose: Part,
    ) -> tuple[Encoded, References]:
        """Return a merchant's unlabeled examples, encoded and augmented as ``encoded_train``, and what students with
        these ``weights`` predict for them as they are; nothing without examples, or if nothing is ``wanted``."""
        name, examples = f"unlabeled of {merchant}", self.merchants[merchant].unlabeled
        if not wanted or not len(examples):
            return {}, {}
        made = predicted(wanted, student, self._encode(student, name, examples), weights)
        return self._varied(student, name, examples, seed, *purpose, "unlabeled"), made

    def _varied(self, student: TextModel, name: str, examples: Examples, seed: Part, *purpose: Part) -> Encoded:
        augmentation = self.experiment.training.augmentation
        if not augmentation.enabled:
            return self._encode(student, name, examples)
        changed = augmented(examples, augmentation, seeds.numpy_stream(seed, *purpose, "augmentation"))
        return student.encode(changed.texts, changed.pairs)

    def expertise(self, merchant: str, request: TrainRequest) -> Tensor:
        """Return a merchant's expertise on the proxy set of a request: the largest lexical cosine of each proxy example
        with one of its training examples, labelled or not, in [0, 1], float32 ``[proxy]``."""
        key = (merchant, request.proxy)
        if key not in self._expertise:
            own = self.merchants[merchant]
            among = self.bags_of(merchant)
            if len(own.unlabeled):
                among = sparse.vstack([among, bags(own.unlabeled.texts, own.unlabeled.pairs)], format="csr")
            self._expertise[key] = torch.from_numpy(largest_cosine(self.bags_of_proxy(request), among))
        return self._expertise[key]

    def density_ratio(self, merchant: str, request: TrainRequest) -> Tensor:
        """Return the density of a merchant's labelled examples relative to that of the proxy set of a request, at each
        proxy example, float64 ``[proxy]``."""
        return torch.from_numpy(kulsif(self.bags_of(merchant), self.bags_of_proxy(request)))

    def count_right(self, student: TextModel, merchant: str) -> tuple[int, int]:
        """Return (correct, all) test examples of a merchant for a student; (0, 0) without test examples."""
        test = self.merchants[merchant].test
        if not len(test):
            return 0, 0
        answers = predict(student, self._encode(student, f"test of {merchant}", test)).argmax(dim=-1).numpy()
        return int(np.sum(answers == test.labels)), len(test)

    def bags_of(self, merchant: str) -> sparse.csr_array:
        """Return the lexical features of a merchant's labelled training examples, see ``text.similarity.bags``."""
        own = self.merchants[merchant].train
        return bags(own.texts, own.pairs)

    def bags_of_proxy(self, request: TrainRequest) -> sparse.csr_array:
        """Return the lexical features of the proxy set of a request."""
        if request.proxy not in self._proxy_bags:
            proxy = self.proxy_of(request)
            self._proxy_bags[request.proxy] = bags(proxy.texts, proxy.pairs).astype(np.float32)
        return self._proxy_bags[request.proxy]

    def _encode(self, student: TextModel, name: str, examples: Examples) -> Encoded:
        key = (blueprint_of(student), name)
        if key not in self._encoded:
            self._encoded[key] = student.encode(examples.texts, examples.pairs)
        return self._encoded[key]
