"""Glossary of a report, for non-engineers."""

GLOSSARY = {
    "Teacher": "The large, accurate language model that the marketplace owns. It is too slow to run for every search.",
    "Student": "The small, fast model that is being trained to do the teacher's work.",
    "Merchant": "An owner of private examples. Its texts and labels stay with it.",
    "Proxy set": "Public examples without labels that all participants have, used to exchange predictions.",
    "Soft labels": "The probabilities that a model assigns to each possible answer, which are more informative than "
    "the best answer alone.",
    "Federated learning": "Training one model across many owners: in each round the merchants improve it on their "
    "own data and send their changes back, which the server aggregates.",
    "Round": "One such exchange between the server and the merchants.",
    "Labels only, no teacher": "A control: the student trained on the server's labels, without a teacher or merchants.",
    "Server alone": "A control: the student trained on the server's labels and the teacher's soft labels, without any "
    "merchant. What it is above labels only is what the teacher adds.",
    "Each merchant alone": "A control: every merchant trains the server's student further on its own data only.",
    "All data pooled": "A control: the data of all merchants in one place, which federation avoids. About what "
    "federation could reach.",
    "FedAvg, no teacher": "A control: plain federated learning from the student of labels only. No teacher had a part "
    "in it.",
    "True labels on the proxy set": "A control: the server's student with the true labels of the proxy set in place of "
    "soft labels: about what methods that send soft labels of that proxy set can reach.",
    "nDCG@10": "How well the best ten results of a search are ordered, from 0 to 1: exact matches first score highest.",
    "With BM25": "nDCG@10 of the student's score and a search by words added up, as a shop would rank that has both.",
    "MRR@10": "One divided by the place of the first exact match among the ten best results, averaged over searches.",
    "AUC": "The chance that a truly positive example is scored above one that is not; 0.5 is guessing, 1 is perfect.",
    "Accuracy": "The share of examples that get the right answer.",
    "Macro-F1": "Precision and recall in one number, averaged over the answers so that rare answers count as much.",
    "Retention": "The student's score divided by the teacher's: the quality that is kept in the smaller model.",
    "Gap closed": "Of what collecting everybody's data would gain over training without federation, the share that "
    "federation gained. 0 % is nothing, 100 % is as good as pooling.",
    "Worst merchant": "The merchant that the student serves least well, among those with enough test examples to "
    "tell, or among all if most have fewer.",
    "Worst tenth": "The accuracy below which a tenth of the merchants are served. Accuracies of merchants with few "
    "test examples are shrunk towards the mean first, so that luck does not count as bad service.",
    "p": "The chance of a difference at least as large if there were none, raised for the number of rows compared "
    "(Holm). Below 0.05 a difference is called significant.",
    "Uplink, downlink": "Bytes that a merchant sends, and receives, in one round, measured on the messages themselves.",
    "Domain adaptation": "Further training of the student on the server's own examples after the final round.",
    "Seed": "The number from which all chance in a run follows. Several seeds show how much of a result is luck.",
    "± (95 % interval)": "Were the experiment repeated with new seeds and test data, the mean would be expected within "
    "this range. The text beside a table says which of them it covers.",
    "Differential privacy": "A proven bound on what can be learned of one example, or one merchant, from what is sent.",
}
