"""Blocks that stay with their workers: they move where a worker has ended, or has come, and never else."""

import random
from collections import Counter

from esrl.cluster import homes
from esrl.cluster.homes import StayingScheduler
from esrl.cluster.schedule import Close, Play, Replace


def settled(blocks, workers, **options):
    """Every block is at home, and one generation is over."""
    scheduler = StayingScheduler([1] * blocks, workers=workers, **options)
    for worker in range(workers):
        scheduler.joined(worker, 0.0)
    played_out(scheduler, scheduler.begin(0.0), 0.0)
    return scheduler


def played_out(scheduler, commands, now):
    """Every order is answered, in its turn, until the generation is over; who played each block."""
    by = {}
    while commands:
        command = commands.pop(0)
        if isinstance(command, Play):
            assert command.block not in by
            by[command.block] = command.worker
            commands += scheduler.finished(command.worker, scheduler.generation, command.block, now)
    return by


def test_a_quick_worker_leaves_the_others_their_share():
    scheduler = StayingScheduler([1] * 4, workers=2)
    scheduler.joined(0, 0.0)
    assert scheduler.begin(0.0) == [Play(0, 0)]
    assert scheduler.finished(0, 1, 0, 1.0) == [Play(0, 1)]
    assert scheduler.finished(0, 1, 1, 2.0) == []
    assert scheduler.joined(1, 50.0) == [Play(1, 2)]


def test_where_nobody_comes_whoever_is_there_takes_the_block():
    scheduler = StayingScheduler([1, 1], workers=2)
    scheduler.joined(0, 0.0)
    scheduler.begin(0.0)
    scheduler.finished(0, 1, 0, 1.0)
    assert scheduler.tick(homes.WAIT - 1) == []
    assert scheduler.tick(homes.WAIT) == [Play(0, 1)]


def test_a_block_is_played_by_its_home_alone_however_late_it_is():
    scheduler = settled(2, 2)
    for now in range(1, 9):
        played_out(scheduler, scheduler.begin(float(now)), float(now))
    assert scheduler.begin(10.0) == [Play(0, 0), Play(1, 1)]
    scheduler.finished(0, scheduler.generation, 0, 10.5)
    assert scheduler.tick(25.0) == [] and scheduler.again == 0


def test_the_block_of_a_worker_that_ended_waits_for_the_next_one():
    scheduler = settled(2, 2)
    assert scheduler.begin(1.0) == [Play(0, 0), Play(1, 1)]
    assert scheduler.left(0, 1.5) == []
    assert scheduler.finished(1, 2, 1, 2.0) == []
    assert scheduler.joined(2, 9.0) == [Play(2, 0)]
    assert scheduler.finished(2, 2, 0, 10.0) == [Close(())]
    assert (scheduler.again, scheduler.ended) == (1, 1)


def test_a_worker_that_hangs_is_replaced():
    scheduler = settled(2, 2, limit=5.0)
    scheduler.begin(1.0)
    scheduler.finished(1, 2, 1, 2.0)
    assert scheduler.tick(6.0) == [Replace(0, 5.0)]
    assert scheduler.joined(2, 9.0) == [Play(2, 0)]


def test_a_worker_that_comes_takes_from_one_that_has_more_than_its_share():
    scheduler = settled(4, 2)
    scheduler.begin(1.0)
    scheduler.left(0, 1.5)  # with two blocks, of which the other worker takes both at last
    now = 2.0
    scheduler.finished(1, 2, 2, now)
    scheduler.finished(1, 2, 3, now)
    commands = scheduler.tick(now + homes.WAIT)
    assert set(played_out(scheduler, commands, 200.0).values()) == {1}
    scheduler.joined(5, 201.0)
    shares = Counter(played_out(scheduler, scheduler.begin(202.0), 202.0).values())
    assert shares == {1: 2, 5: 2}


def test_every_generation_ends_with_each_block_once_whatever_happens():
    for seed in range(40):
        draw = random.Random(seed)
        scheduler, now, commands = StayingScheduler([1] * 5, workers=3, limit=20.0), 0.0, []
        alive, next_worker = {}, 0
        for _ in range(4):
            commands = scheduler.begin(now)
            done = set()
            for _ in range(10_000):
                over = False
                for command in commands:
                    if isinstance(command, Play):
                        assert alive[command.worker] is None
                        alive[command.worker] = command.block
                    elif isinstance(command, Replace):
                        alive.pop(command.worker)
                    over |= isinstance(command, Close)
                if over:
                    break
                now += draw.random() * 10
                commands = scheduler.tick(now)
                if not commands:
                    busy = [worker for worker, block in alive.items() if block is not None]
                    what = draw.random()
                    if len(alive) < 3 and what < 0.3:
                        alive[next_worker] = None
                        commands, next_worker = scheduler.joined(next_worker, now), next_worker + 1
                    elif busy and what < 0.9:
                        worker = draw.choice(busy)
                        block, alive[worker] = alive[worker], None
                        done.add(block)
                        commands = scheduler.finished(worker, scheduler.generation, block, now)
                    elif alive and what > 0.97:
                        worker = draw.choice(list(alive))
                        del alive[worker]
                        commands = scheduler.left(worker, now)
            else:
                raise AssertionError("it never ended")
            assert scheduler._done == set(range(5))
