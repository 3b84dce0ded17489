"""What each way of choosing and refitting weights is, said once: for forms, tables and the shell. Imports no torch, so that a
form can say it before the engine is loaded."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """`name`: as people call it. `short`: behind the name in a list of choices. `idea`: one sentence. `reference`: authors,
    year, title, arXiv number. `cost`: in words, beside the passes over the images that all methods take."""

    name: str
    short: str
    idea: str
    reference: str
    cost: str


NO_COST = "Nothing."
# In the order in which they are offered, the common ones first.
MASKS = {
    "magnitude": Card(
        "Magnitude",
        "drop the smallest weights",
        "Keep the weights that are largest in size; the images play no part.",
        "Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks, arXiv 1506.02626",
        NO_COST,
    ),
    "wanda": Card(
        "Wanda",
        "drop the smallest of weight times input",
        "Keep the weights whose size times the length of their input is largest.",
        "Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models, arXiv 2306.11695",
        "The inputs' Gram matrix.",
    ),
    "sparsegpt": Card(
        "SparseGPT",
        "drop what the others best make up for",
        "Go over the columns once, dropping the weights whose loss the columns still to come best make up for.",
        "Frantar & Alistarh 2023, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, arXiv 2301.00774",
        "One factorization of the Gram matrix a layer.",
    ),
    "ria": Card(
        "RIA",
        "drop what is small beside its row and column",
        "Keep the weights that are large beside the others of their row and column, by the root of their input's length.",
        "Zhang et al. 2024, Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models (ICLR)",
        "The inputs' Gram matrix.",
    ),
    "alps": Card(
        "ALPS",
        "let a free and a sparse solution meet",
        "Pull the weights that reproduce the layer's output and their nearest sparse ones together until the mask is steady.",
        "Meng et al. 2024, ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models, "
        "arXiv 2406.07831",
        "One eigendecomposition a layer, then up to 300 products with it.",
    ),
    "obc": Card(
        "OBC",
        "drop one by one, the others adjusted each time",
        "In every row drop the weight whose loss the others best make up for, adjust them, and begin again.",
        "Frantar & Alistarh 2022, Optimal Brain Compression: A Framework for Accurate Post-Training Quantization and Pruning, "
        "arXiv 2208.11580",
        "The number of inputs cubed, for every row: seconds on the bundled networks, far too much where layers are wide.",
    ),
    "sparseswaps": Card(
        "SparseSwaps",
        "begin as Wanda, exchange what lowers the error",
        "From Wanda's mask on, make the exchange of a kept for a pruned weight that lowers the row's error the most, again and "
        "again.",
        "Zimmer et al. 2025, SparseSwaps: Tractable LLM Pruning Mask Refinement at Scale, arXiv 2512.10922",
        "Every pair of a row, or of a group of N:M, for each of up to 100 exchanges.",
    ),
    "dsnot": Card(
        "DSnoT",
        "begin as Wanda, exchange what centres the error",
        "From Wanda's mask on, exchange weights so that what a row loses is zero on average over the images.",
        "Zhang et al. 2023, Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs, arXiv 2310.08915",
        "The inputs' Gram matrix and mean, and up to 50 exchanges.",
    ),
    "random": Card("Random", "drop any (a control)", "Keep any; what is no better is no method.", "A control", NO_COST),
}
# Of whole units alone.
UNIT_MASKS = {
    "taylor": Card(
        "Taylor",
        "drop the units that the answers hang on least",
        "Keep the units whose weights times their slopes, summed over the unit, are largest: about what the network's own "
        "answers would lose without it.",
        "Molchanov et al. 2017, Pruning Convolutional Neural Networks for Resource Efficient Inference, arXiv 1611.06440",
        "One pass of the whole network forwards and back.",
    ),
}
UPDATES = {
    "none": Card("Mask only", "leave their values alone", "", "", NO_COST),
    "least-squares": Card(
        "Least squares",
        "match this layer's own output",
        "The kept weights take the values that reproduce the layer's own output best.",
        "Hassibi & Stork 1993, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon",
        "One small linear system a row.",
    ),
    "sparsegpt": Card(
        "SparseGPT",
        "one sweep over the columns",
        "Whenever a column's weights are dropped, the columns to its right make up for them.",
        "Frantar & Alistarh 2023, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, arXiv 2301.00774",
        "One factorization of the Gram matrix a layer.",
    ),
    "snows": Card(
        "SNOWS",
        "match this layer and the next K operations",
        "Newton steps fit the kept weights so that the next K operations compute what they did.",
        "Lucas & Mazumder 2025, Preserving Deep Representations in One-Shot Pruning: A Hessian-Free Second-Order Optimization "
        "Framework, arXiv 2411.18376",
        "Tens of forward passes over the images, more with K.",
    ),
}
REFINEMENT = Card(
    "Refined mask",
    "",
    "Kept weights are exchanged for pruned ones of their group where the fit is better with them.",
    "",
    "About 30 % more.",
)
_TOGETHER = "Twenty passes over the images through the whole network and back, of the dense network for its values, too."
JOINTS = {
    "network": Card(
        "Joint fit",
        "",
        "All kept weights of the network move together, toward the dense network's values at the blocks' ends and its answers.",
        "Kingma & Ba 2015, Adam, arXiv 1412.6980; Zhang et al. 2018, mixup, arXiv 1710.09412",
        _TOGETHER,
    ),
    "answers": Card(
        "Joint fit to answers",
        "",
        "All kept weights of the network move together, toward the dense network's answers; no label is asked for.",
        "Hinton et al. 2015, Distilling the Knowledge in a Neural Network, arXiv 1503.02531",
        _TOGETHER,
    ),
}
REPAIR = Card(
    "Variance repair",
    "",
    "Every output channel of a pruned layer gets back the mean and the spread that it had, its kept weights scaled together.",
    "Jordan et al. 2022, REPAIR: REnormalizing Permuted Activations for Interpolation Repair, arXiv 2211.08403",
    "Two passes more over the images.",
)
BATCH_NORM = Card(
    "Batch-norm recalibration",
    "",
    "Batch norms measure their statistics again on the pruned network; a network without them stays as it was.",
    "Li et al. 2020, EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, arXiv 2007.02491",
    "One pass more over the images.",
)
