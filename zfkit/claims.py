"""The paper's 36 testable claims as data, and the rule by which a number decides them.

Each statistic is built so that one number and its 95 % interval decide: a difference to the
strongest control, or a share. Rules, what is resampled, and for networks and folds how many
were written down before the numbers were known; none is changed afterwards.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One claim, in our words: where it stands, the paper's number, and what decides it.

    unit: what the interval resamples. side: "above" (the claim says that the statistic lies
    above bound), "below", or "within" (inside -bound..bound). fixed: how many networks or folds
    there must be, two numbers where drawings and photographs differ; None: as the run has.
    """

    number: int
    place: str
    text: str
    paper: str
    statistic: str
    control: str
    bound: float
    unit: str
    side: str = "above"
    fixed: int | tuple[int, int] | None = None

    @property
    def rule(self) -> str:
        """The rule in words."""
        sides = {"above": ("above", "below"), "below": ("below", "above")}
        claimed, other = sides.get(self.side, ("closer to 0 than", "farther from 0 than"))
        return (
            f"holds if the whole 95 % interval lies {claimed} {self.bound:g}, "
            f"contradicted if all of it lies {other} {self.bound:g}; otherwise undecided"
        )

    def decide(self, low: float, high: float) -> str:
        """What an interval says: "holds", "contradicted" or "undecided".

        >>> CLAIMS[1].decide(0.70, 0.85)  # the bound is 0.75
        'undecided'
        """
        if self.side == "within":
            holds = -self.bound < low and high < self.bound
            against = low > self.bound or high < -self.bound
        else:
            above, below = low > self.bound, high < self.bound
            holds, against = (above, below) if self.side == "above" else (below, above)
        return "holds" if holds else "contradicted" if against else "undecided"

    def margin(self, value: float) -> float:
        """How far a value lies from the nearest bound."""
        bounds = (-self.bound, self.bound) if self.side == "within" else (self.bound,)
        return min(abs(value - bound) for bound in bounds)

    def needed(self, drawings: bool) -> int | None:
        """How many networks or folds must be there; None where the run says how many units."""
        if isinstance(self.fixed, tuple):
            return self.fixed[0 if drawings else 1]
        return self.fixed


def _claims(*rows) -> dict[int, Claim]:
    return {number: Claim(number, *row) for number, row in enumerate(rows, 1)}


CLAIMS = _claims(
    ("sec. 2.1, Fig. 1", "A projection shows the input structure that caused the activation",
     "none",
     "share of units that keep more activation when only the strongest fifth of the "
     "projection's pixels is left than with either control mask; over units",
     "the same mask moved in the field; as many edge pixels", 0.75, "units"),
    ("sec. 2.1",
     "Projections of a network trained to discriminate show which parts are discriminative",
     "none",
     "lift (share of the energy on the object that lies on its telling parts, over their "
     "share of the object's area) minus the higher of both controls; over images",
     "network trained on shuffled labels; edge map", 0.0, "images"),
    ("sec. 2.1, Fig. 1", "The switches carry the structure", "none",
     "cosine of the projection by an image's own switches and by another image's, unit, place "
     "and start being the same; over images", "switches from noise images", 0.5, "images",
     "below"),
    ("sec. 2.1", "For fixed switches the projection scales with the activation", "none",
     "largest relative deviation of project(a x start) / a from project(start)", "exact", 1e-05,
     "images", "below"),
    ("sec. 4, Fig. 2", "Layer 2 answers to corners and to conjunctions of edge and colour",
     "none",
     "share of layer-2 units best excited by a corner or colour edge, minus the share in the "
     "control", "untrained network; layer 1", 0.2, "units"),
    ("sec. 4, Fig. 2", "Layer 3 captures textures", "none",
     "gain of texture decoding over the control in the middle layer, minus the best gain of "
     "another layer", "untrained network", 0.0, "images"),
    ("sec. 4, Fig. 2", "Layer 4 is class-specific", "none",
     "class entropy (bits) of the nine strongest images: the smallest of layer 3, shuffled "
     "labels and random directions of layer 4, each minus layer 4; over units",
     "layer 3; network trained on shuffled labels; random directions of the layer", 0.0,
     "units"),
    ("sec. 4, Fig. 2", "Layer 5 shows whole objects with varied pose", "none",
     "pose spread of the nine strongest images of a layer-5 channel over that of the whole "
     "class; over units", "random nines of the class (1)", 0.5, "units"),
    ("sec. 4, Fig. 2",
     "Each map groups alike images strongly, and the patches vary more than the projections",
     "none",
     "similarity of the nine projections within a map: the smallest of it minus between maps, "
     "minus that of the nine patches, and minus that of random directions' nine projections, "
     "all aligned; over units",
     "random nines; untrained network; random directions of the layer", 0.0, "units"),
    ("sec. 4, Fig. 2",
     "Invariance grows with the layer and discriminative parts are exaggerated", "none",
     "projection energy at eyes and nose over the face's mean, divided by the same of the "
     "edge map, minus 1; over images", "edge map at the same points", 0.0, "images"),
    ("sec. 4, Fig. 4", "Low layers settle within a few epochs", "few epochs",
     "rank correlation of layer number and first epoch at which filters correlate over 0.9 "
     "with the last; over networks of one grid of epochs", "same rate schedule", 0.0,
     "networks", "above", 3),
    ("sec. 4, Fig. 4", "Upper layers develop late", "40-50 of 70 epochs",
     "median settling time of the upper over that of the lower layers; over networks of one "
     "grid of epochs; not testable where no snapshot lies between both", "constant rate", 2.0,
     "networks", "above", 3),
    ("sec. 4, Fig. 4", "Jumps are changes of the strongest image", "none",
     "projection change between snapshots with over without a change of the strongest image; "
     "over units", "units whose image stays", 1.0, "units"),
    ("sec. 4, Fig. 5", "Small transformations act strongly on layer 1, little on the top",
     "curves only",
     "relative distance at a small transformation, layer 1 minus layer 7, minus the same in "
     "the control; over images", "untrained network; not testable without a layer 7", 0.3,
     "images"),
    ("sec. 4, Fig. 5", "The top layer moves quasi-linearly with shift and scale", "none",
     "R squared of a line through the origin for the median curve, the smaller of shift and "
     "scale; over images", "layer 1; share of single images above 0.95", 0.95, "images"),
    ("sec. 4, Fig. 5", "The output is stable under shift and scale",
     "flat to about 15 px in three known images",
     "mean drop of P(true) over the paper's range of shifts (27 % of the side) and of scales "
     "(1 to 2), the median image, the larger of both; over images",
     "rotation; the range of the training's augmentation", 0.2, "images", "below"),
    ("sec. 4, Fig. 5",
     "The output is not invariant to rotation, save for objects with symmetry", "none",
     "P(true) at the object's symmetry angle minus its mean over other angles; over images",
     "other objects", 0.0, "images"),
    ("sec. 4.1, Fig. 6b",
     "11x11 filters at stride 4 mix extreme frequencies and lack the middle ones", "none",
     "energy share of the middle third of the spectrum, 7x7/2 minus 11x11/4; over seeds",
     "untrained filters", 0.0, "seeds", "above", (5, 3)),
    ("sec. 4.1, Fig. 6d", "Stride 4 causes aliasing in layer 2", "none",
     "how far layer-2 responses leave the line between shifts of 0 and 8 px at the shifts "
     "between, stride 4 minus stride 2 at equal total stride; over seeds",
     "stride 2; blurred sampling", 0.0, "seeds", "above", (5, 3)),
    ("sec. 4.1, Fig. 6c", "7x7 at stride 2 has fewer dead and more distinct features", "none",
     "the smaller of two: dead share of 11x11/4 minus that of 7x7/2; and share of filters "
     "whose spectrum has one peak, beyond the untrained start's, of 7x7/2 minus that of "
     "11x11/4; over seeds", "untrained filters; 2x2 of size and stride; RMS clipping", 0.0,
     "seeds", "above", (5, 3)),
    ("sec. 4.1, Table 2", "The change lowers the error", "40.5/18.1 to 38.4/16.5 %",
     "error of the replica minus error of the new network, percentage points; over seeds",
     "spread over seeds", 0.0, "seeds", "above", (5, 3)),
    ("sec. 4.2, Fig. 7d", "P(true) falls when the object is covered", "50 px square, stride 6",
     "AUC of the drop map against the object's mask minus the better control, at the paper's "
     "size of square (50 of 224); over images",
     "mask moved or of another image; a sweep of sizes beside it", 0.0, "images"),
    ("sec. 4.2, Fig. 7b, c", "The strongest map's activity falls where its projection lies",
     "maps only",
     "rank correlation of drop map and blurred projection energy minus the best control; over "
     "images", "another map's projection; edges; untrained network", 0.0, "images"),
    ("sec. 4.2, Fig. 7e", "Under occlusion the label changes to what remains",
     "tennis ball at 9 of 900 places",
     "share of flips to the second object, first covered, over the same with background "
     "covered; over images", "square on the background", 3.0, "images"),
    ("sec. 4.2", "The object is used, not its context", "none",
     "accuracy with the object only minus with the context only; over images", "random area",
     0.1, "images"),
    ("sec. 4.3, Table 1",
     "In layer 5, covering eyes or nose changes features alike across faces",
     "0.067-0.079; 0.107",
     "baseline-free distance: random places on the object minus the largest of the three "
     "parts, in standard deviations of those places; over faces",
     "random places on the object; on the head; untrained network", 0.0, "faces"),
    ("sec. 4.3, Table 1", "In layer 7 the difference vanishes", "0.068-0.069; 0.073",
     "random places on the object minus the mean of the three parts, in standard deviations "
     "of those places; over faces", "the same in layer 5, beside it", 0.5, "faces", "within"),
    ("sec. 5.1, Table 2", "The new network beats the replica", "-2.1 top-1, -1.6 top-5",
     "error of the replica minus error of the new network, percentage points; over seeds",
     "spread over seeds", 0.0, "seeds", "above", 3),
    ("sec. 5.1, Table 2", "Averaging networks helps, unlike ones more",
     "16.5, 15.3 (5), 14.7 (6)",
     "error of the best single member minus error of the average, percentage points; over "
     "draws", "single member", 0.0, "draws", "above", 3),
    ("sec. 5.1, Table 3", "Layers 3-4 or 6-7 can go at little cost, not both",
     "+4.9, +4.3, +30.8 points",
     "error added without both pairs, over the sum of each; over seeds", "nets of equal size",
     2.0, "seeds", "above", 3),
    ("sec. 5.1, Table 3", "Wider middle convolutions help, wider fc layers overfit",
     "-0.9; +0.4 points",
     "the smaller of error saved by wide convolutions and gap added by wide fc; over seeds",
     "equal budget", 0.0, "seeds", "above", 3),
    ("sec. 5.2, Tables 4, 5", "Pre-trained features beat training from scratch by far",
     "86.5 to 46.5; 74.2 to 38.8", "accuracy of frozen features minus from scratch; over folds",
     "untrained features; colour histogram", 0.1, "folds", "above", 5),
    ("sec. 5.2, Fig. 9", "A few examples suffice", "6 per class beat 60",
     "ratio of the numbers of examples at equal accuracy, other over frozen; over folds",
     "hand-made features", 10.0, "folds", "above", 5),
    ("sec. 5.2, Table 6", "Transfer is weaker where the data differ", "79.0 to 82.2",
     "transfer gain near minus transfer gain far; over folds", "equal loss", 0.0, "folds",
     "above", 5),
    ("sec. 5.3, Table 7", "Deeper layers give better features", "44.8 to 85.5; 24.6 to 71.7",
     "rank correlation of layer and probe accuracy; over folds",
     "untrained network; equal dimension", 0.9, "folds", "above", 5),
    ("sec. 5.3, Table 7", "SVM and softmax do alike on the top layer", "85.5, 85.4; 71.7, 72.6",
     "accuracy of the SVM minus softmax, in standard deviations over folds", "same features",
     2.0, "folds", "within", 5),
)  # fmt: skip
