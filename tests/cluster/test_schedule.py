"""The scheduler alone: whatever workers do, a generation ends, and every block is in it once."""

import random

import pytest

from esrl.cluster import schedule
from esrl.cluster.schedule import Close, GiveUp, Play, Replace, Scheduler


def begun(sizes, workers, **options):
    found = Scheduler(sizes, **options)
    for worker in range(workers):
        assert found.joined(worker, 0.0) == []
    return found


def test_blocks_go_to_idle_workers_in_order_and_the_last_one_closes_the_generation():
    scheduler = begun([2, 2, 1], 2)
    assert scheduler.begin(0.0) == [Play(0, 0), Play(1, 1)]
    assert scheduler.finished(1, 1, 1, 1.0) == [Play(1, 2)]
    assert scheduler.finished(0, 1, 0, 1.0) == []
    assert scheduler.finished(1, 1, 2, 2.0) == [Close(())]
    assert scheduler.begin(2.0)[0].block == 0


def test_what_a_worker_that_ended_had_is_played_first_by_another():
    scheduler = begun([1] * 4, 2)
    scheduler.begin(0.0)
    assert scheduler.left(0, 0.5) == []  # nobody is idle
    assert scheduler.finished(1, 1, 1, 1.0) == [Play(1, 0)]
    assert (scheduler.again, scheduler.ended) == (1, 1)


def test_a_late_block_is_played_twice_and_the_second_answer_changes_nothing():
    scheduler = begun([1] * 6, 2)
    scheduler.begin(0.0)
    time = 0.0
    for block in (1, 2, 3, 4, 5):  # worker 0 dawdles over block 0
        time += 1.0
        scheduler.finished(1, 1, block, time)
    assert scheduler.again == 1  # it was given to worker 1 as soon as that was idle
    assert scheduler.tick(time) == []
    assert scheduler.finished(1, 1, 0, time + 1) == [Close(())]
    scheduler.begin(time + 1)
    assert scheduler.finished(0, 1, 0, time + 2)[0] == Play(0, 1)  # an old answer: there is one more worker
    assert scheduler.generation == 2


def test_a_worker_that_takes_far_too_long_is_replaced_and_one_that_compiles_is_waited_for():
    scheduler = begun([1, 1], 1, limit=10.0)
    scheduler.begin(0.0)
    assert scheduler.wake() == 10.0 + schedule.START
    scheduler.finished(0, 1, 0, 300.0)
    assert scheduler.wake() == 310.0
    assert scheduler.tick(309.0) == []
    assert scheduler.tick(310.0) == [Replace(0, 10.0)]
    assert scheduler.left(0, 311.0) == []  # known already
    assert scheduler.joined(1, 312.0) == [Play(1, 1)]


def test_a_block_that_every_worker_ends_at_is_given_up():
    scheduler = begun([1, 1], 1)
    commands = scheduler.begin(0.0)
    for worker in range(schedule.MOST_DEATHS):
        assert Play(worker, 0) in commands
        commands = scheduler.left(worker, 1.0) + scheduler.joined(worker + 1, 1.0)
    assert GiveUp(0) in commands and Play(schedule.MOST_DEATHS, 1) in commands
    assert scheduler.finished(schedule.MOST_DEATHS, 1, 1, 2.0) == [Close(())]


def test_a_part_of_the_pairs_closes_a_generation():
    scheduler = begun([4, 4, 2], 3, close_at=0.8)
    scheduler.begin(0.0)
    assert scheduler.finished(2, 1, 2, 1.0) == []
    assert scheduler.finished(1, 1, 1, 1.0) == []
    assert scheduler.finished(0, 1, 0, 1.0) == [Close(())]
    scheduler.begin(1.0)
    assert scheduler.finished(0, 2, 0, 2.0) == []
    assert scheduler.finished(1, 2, 1, 2.0) == [Close((2,))]


def test_refused_work_is_done_again_and_is_no_death():
    scheduler = begun([1, 1], 1)
    scheduler.begin(0.0)
    for _ in range(2 * schedule.MOST_DEATHS):
        assert scheduler.refused(0, 1.0) == [Play(0, 0)]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_block_is_settled_once_and_no_worker_has_two(seed):
    rng = random.Random(seed)
    sizes = [rng.randint(1, 4) for _ in range(rng.randint(1, 30))]
    scheduler, now, newest, busy = Scheduler(sizes), 0.0, 0, {}
    idle = set()

    def obey(commands, settled):
        for command in commands:
            if isinstance(command, Play):
                assert command.worker in idle
                idle.discard(command.worker)
                busy[command.worker] = (scheduler.generation, command.block)
            elif isinstance(command, Replace):
                del busy[command.worker]
            elif isinstance(command, GiveUp):
                settled.append(command.block)
            else:
                assert command.missing == ()
                return True
        return False

    for _ in range(4):
        settled, over, patience = [], obey(scheduler.begin(now), []), 0
        while not over:
            patience += 1
            assert patience < 5000
            now += rng.expovariate(1.0)
            chance = rng.random()
            if chance < 0.15 or not (busy or idle):
                idle.add(newest)
                over = obey(scheduler.joined(newest, now), settled)
                newest += 1
            elif chance < 0.2 and (busy or idle):
                worker = rng.choice(sorted({*busy, *idle}))
                busy.pop(worker, None)
                idle.discard(worker)
                over = obey(scheduler.left(worker, now), settled)
            elif chance < 0.3:
                over = obey(scheduler.tick(now), settled)
            elif busy:
                worker = rng.choice(sorted(busy))
                generation, block = busy.pop(worker)
                idle.add(worker)
                if generation == scheduler.generation and block not in settled:
                    settled.append(block)
                over = obey(scheduler.finished(worker, generation, block, now), settled)
            assert scheduler.workers == len(busy) + len(idle)
        assert sorted(settled) == list(range(len(sizes)))
