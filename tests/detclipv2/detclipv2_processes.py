"""Two gloo processes for the tests that compare them with one."""

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detclipv2_parts import TrainedLetters, make_model

from detclipv2 import RegionSelection
from detclipv2.alignment import alignment_loss, concept_targets, select_columns, unique_concepts
from detclipv2.contrastive import WordRegionLoss, classification_loss, word_region_loss
from detclipv2.gather import gather_objects, gather_rows, share_of
from polydet.dense import DenseTargets

WORLD = 2


def in_processes(work, *args):
    """`work(rank, *args)` in two processes; the picklable results in the order of the ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("fork")
    queue = context.SimpleQueue()
    workers = [context.Process(target=_enter, args=(work, rank, port, queue, args)) for rank in range(WORLD)]
    for worker in workers:
        worker.start()
    results = dict(queue.get() for _ in workers)
    for worker in workers:
        worker.join()
    failed = [results[rank][1] for rank in range(WORLD) if results[rank][0] == "error"]
    assert not failed, failed[0]
    return [results[rank][1] for rank in range(WORLD)]


def _enter(work, rank, port, queue, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    try:
        queue.put((rank, ("ok", work(rank, *args))))
    except Exception as error:  # the parent shows it
        queue.put((rank, ("error", f"{type(error).__name__}: {error}")))
    finally:
        dist.destroy_process_group()


def averaged(gradient):
    """What DistributedDataParallel does to a gradient."""
    dist.all_reduce(gradient)
    return gradient / WORLD


class Pairs:
    """Regions of images and concepts of texts, from two weight matrices that are trained."""

    def __init__(self, sizes, seed=0, k=5, dim=6):
        generator = torch.Generator().manual_seed(seed)
        n = sum(sizes)
        self.sizes = sizes
        self.pixels = torch.randn(n, k, dim, generator=generator, dtype=torch.float64)
        self.mask = torch.ones(n, k, dtype=torch.bool)
        self.mask[0, 3:] = False
        words = [f"caption {i}" for i in range(n)]
        self.texts = [[words[i], f"noun {i % 3}", "shared"][: 1 + i % 3] for i in range(n)]
        every = unique_concepts(self.texts)
        self.word = dict(zip(every, torch.randn(len(every), dim, generator=generator, dtype=torch.float64)))
        self.image_weight = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        self.text_weight = torch.randn(dim, dim, generator=generator, dtype=torch.float64)

    def loss(self, rank, world, settings):
        """Loss of one process and gradients of both weights, as the model computes them."""
        start = sum(self.sizes[:rank]) if world > 1 else 0
        stop = start + (self.sizes[rank] if world > 1 else sum(self.sizes))
        image_weight = self.image_weight.float().requires_grad_()
        text_weight = self.text_weight.float().requires_grad_()
        regions = self.pixels[start:stop].float() @ image_weight
        texts = [text for part in gather_objects(self.texts[start:stop]) for text in part]
        every = unique_concepts(texts)
        mine = torch.stack([self.word[name] for name in share_of(every)]).float() @ text_weight
        concepts = gather_rows(mine)[0][: len(every)]
        members = torch.full((len(texts), 3), -1)
        for row, text in zip(members, texts):
            row[: len(text)] = torch.tensor([every.index(name) for name in text])
        if settings == "classification":
            target = torch.arange(start, stop) % len(every)
            loss = classification_loss(regions[:, 0], concepts, target)
        else:
            loss = word_region_loss(regions, self.mask[start:stop], concepts, members, start, settings)
        loss.backward()
        return loss.detach(), image_weight.grad, text_weight.grad


def pairs_in_process(rank, sizes, settings):
    loss, *gradients = Pairs(sizes).loss(rank, WORLD, settings)
    return [averaged(loss).item(), *[averaged(g).tolist() for g in gradients]]


ALL_SETTINGS = [
    WordRegionLoss(),
    WordRegionLoss(norm_axis="texts", temperature=0.15, label_smoothing=0.0),
    WordRegionLoss(side="image_to_text", chunk=1),
    WordRegionLoss(side="both", norm_axis="texts"),
    WordRegionLoss(matching="softmax", chunk=2),
    WordRegionLoss(matching="largest_box"),
]


class Boxes:
    """A detection batch: anchors, assignment, boxes with concepts."""

    concepts = (["cat", "dog", "tree"], ["dog", "bird"], [], ["cat", "cat", "fish"])
    carried = (
        torch.tensor([[True, False, False], [False, True, True]]),
        torch.tensor([[False, True]]),
        torch.zeros(0, 0, dtype=torch.bool),
        torch.tensor([[True, False, False], [False, True, False], [False, False, True]]),
    )
    matches = torch.tensor(
        [[0, -1, 1, -2, 1, -1], [0, 0, -1, -1, -1, -2], [-1, -1, -1, -1, -1, -2], [2, 0, -1, -1, 1, -1]]
    )

    def __init__(self, dim=5):
        generator = torch.Generator().manual_seed(1)
        self.regions = torch.randn(4, 6, dim, generator=generator, dtype=torch.float64)
        self.word = {
            name: torch.nn.functional.normalize(torch.randn(dim, generator=generator, dtype=torch.float64), dim=0)
            for name in ("cat", "dog", "tree", "bird", "fish")
        }
        self.weight = torch.randn(dim, dim, generator=generator, dtype=torch.float64)

    def boxes(self):
        """Per image the set of strings of each box."""
        return [
            [{names[m] for m in row.nonzero()[:, 0].tolist()} for row in carried]
            for names, carried in zip(self.concepts, self.carried)
        ]

    def loss(self, images, limit=None, checkpointing=False):
        """Loss of the images of one process and the gradient of the text weight."""
        weight = self.weight.float().requires_grad_()
        own = [self.concepts[i] for i in images]
        every = unique_concepts(gather_objects(unique_concepts(own)))
        mine = torch.stack([self.word[name] for name in share_of(every)]).float() @ weight
        rows = gather_rows(mine)[0][: len(every)]
        names = select_columns(unique_concepts(own), every, limit)
        texts = rows[[every.index(name) for name in names]]
        column = {name: i for i, name in enumerate(names)}
        gt = [concept_targets(self.carried[i], self.concepts[i], column, len(names)) for i in images]
        matches = self.matches[images]
        targets = DenseTargets(matches, torch.zeros(len(images), 6, 4), matches)
        regions = self.regions[images].float().requires_grad_()
        loss = alignment_loss(regions, texts, 2.0, -1.0, targets, gt, checkpointing=checkpointing)
        loss.backward()
        return loss.detach(), weight.grad, regions.grad


def boxes_in_process(rank):
    loss, gradient, _ = Boxes().loss([0, 1] if rank == 0 else [2, 3])
    return [averaged(loss).item(), averaged(gradient).tolist()]


def rows_in_process(rank):
    """Different numbers of rows; the gradient of a loss that every process computes."""
    rows = torch.arange(1.0 + 2 * rank).reshape(-1, 1).requires_grad_()
    everyone, first = gather_rows(rows)
    (everyone * torch.arange(1.0, 1 + len(everyone))[:, None]).sum().backward()
    return everyone[:, 0].tolist(), first, rows.grad[:, 0].tolist(), list(share_of(list("abc")))


def model_gradients(items):
    """Losses and gradients of the small model, regions chosen by each image's own words."""
    own = RegionSelection(score="own_text", k=5)
    single = RegionSelection(score="own_text", k=1)
    model = make_model(TrainedLetters(), selection=own, classification_selection=single).train()
    losses = model(items)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, gradients


def model_in_process(rank, items):
    losses, gradients = model_gradients(items[rank::WORLD])
    losses = {name: averaged(value).item() for name, value in losses.items()}
    return losses, {name: averaged(g).tolist() for name, g in gradients.items()}
