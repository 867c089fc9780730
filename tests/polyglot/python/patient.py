"""Callers that wait for their connection (`wait_for_ready`), while sidecars are restarted.

    patient.py SIDECAR SKILL CALLERS MARK

Each caller runs a task, hands another one over and watches it, and asks who offers the skill; again
and again, until standard input ends. A stream that ends with DRAINING is opened again from its
cursor. Every other status is a failure, and so is a number left out or told twice, a wrong result,
or two tasks for one submission. Prints one JSON object: counts, and the first failures.
"""

import collections
import json
import sys
import threading
import time

import grpc

from attache.v1 import agent_pb2, agent_pb2_grpc, registry_pb2, registry_pb2_grpc, task_pb2

LIMIT = 60  # Seconds; of one call with its wait.
ENDS = {
    task_pb2.TASK_STATE_COMPLETED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_CANCELED,
    task_pb2.TASK_STATE_REJECTED,
}
# A sidecar is back within a second: nobody here waits for long before asking again. Retries stay as
# they are by default: nobody gives a policy, so only those happen that gRPC calls transparent (gRFC
# A6), of calls that were never put on the wire or that a GOAWAY has excluded. Without them the C core
# ends calls that it began just before it read the GOAWAY, and no server ever hears of those.
OPTIONS = [
    ("grpc.default_authority", "localhost"),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


class Book:
    """What was seen, by all callers."""

    def __init__(self):
        self.lock = threading.Lock()
        self.count = collections.Counter()
        self.failures = []
        self.longest = 0.0

    def add(self, what):
        with self.lock:
            self.count[what] += 1

    def fail(self, text):
        with self.lock:
            self.count["failures"] += 1
            if len(self.failures) < 10:
                self.failures.append(text)

    def took(self, began):
        with self.lock:
            self.longest = max(self.longest, time.monotonic() - began)


def said(error):
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    return f"{error.code().name} {error.details()} {details!r}"


class Task:
    """One task, over as many streams as it takes."""

    def __init__(self, name, book):
        self.name, self.book = name, book
        self.id, self.last, self.state, self.text = None, 0, None, None
        self.keepalive = None

    def take(self, update):
        self.keepalive = update.keepalive.last_seq if update.HasField("keepalive") else None
        if update.HasField("task"):
            self.id = update.task.id
        if update.HasField("event"):
            event = update.event
            if event.seq != self.last + 1:
                self.book.fail(f"{self.name}: event {event.seq} after {self.last}")
            self.last, self.state = event.seq, event.state
            if event.HasField("result"):
                self.text = "".join(part.text for part in event.result.parts)
            if event.HasField("failure"):
                self.text = event.failure.reason

    def follow(self, stream):
        """Reads a stream to its end; whether the task has to be watched again."""
        try:
            for response in stream:
                self.take(response.update)
        except grpc.RpcError as error:
            if self.id and "DRAINING" in said(error) and self.keepalive == self.last:
                self.book.add("cursors")
                return self.state not in ENDS
            self.book.fail(f"{self.name} at {self.last}: {said(error)}")
            return False
        if self.state not in ENDS:
            self.book.fail(f"{self.name}: ended well at {self.last} in {self.state}")
        return False


class Caller(threading.Thread):
    def __init__(self, channel, skill, name, book, stop):
        super().__init__(name=name)
        self.agent = agent_pb2_grpc.AgentStub(channel)
        self.registry = registry_pb2_grpc.RegistryStub(channel)
        self.skill, self.book, self.stop = skill, book, stop

    def run(self):
        turn = 0
        while not self.stop.is_set():
            for way in (self.run_task, self.submit, self.discover):
                began = time.monotonic()
                name = f"{self.name}-{turn}"
                try:
                    way(name)
                    self.book.add(way.__name__)
                except grpc.RpcError as error:
                    self.book.fail(f"{way.__name__} {name}: {said(error)}")
                self.book.took(began)
                turn += 1

    def spec(self, name):
        selector = registry_pb2.Selector(skill=self.skill)
        part = task_pb2.Part(text=f"40 {name}")
        spec = agent_pb2.TaskSpec(selector=selector, input=[part], correlation_id=name)
        spec.options.timeout.FromSeconds(LIMIT)
        return spec

    def run_task(self, name):
        task = Task(name, self.book)
        request = agent_pb2.RunTaskRequest(spec=self.spec(name))
        self.end(task, self.agent.RunTask(request, timeout=LIMIT, wait_for_ready=True))

    def submit(self, name):
        task = Task(name, self.book)
        request = agent_pb2.SubmitTaskRequest(spec=self.spec(name))
        task.id = self.agent.SubmitTask(request, timeout=LIMIT, wait_for_ready=True).task.id
        self.end(task, self.watch(task))

    def watch(self, task):
        request = agent_pb2.WatchTaskRequest(task_id=task.id, after_seq=task.last)
        return self.agent.WatchTask(request, timeout=LIMIT, wait_for_ready=True)

    def end(self, task, stream):
        while task.follow(stream):
            stream = self.watch(task)
        if task.text != f"40 {task.name}":
            self.book.fail(f"{task.name} {task.id} ended {task.state} with {task.text}")

    def discover(self, name):
        selector = registry_pb2.Selector(skill=self.skill)
        request = registry_pb2.DiscoverRequest(selector=selector)
        found = self.registry.Discover(request, timeout=LIMIT, wait_for_ready=True).instances
        if not found:
            self.book.fail(f"{name}: nobody offers {self.skill}")


def look_over(channel, mark, book):
    """One task for each submission, and each completed."""
    agent, token, seen = agent_pb2_grpc.AgentStub(channel), "", collections.Counter()
    while True:
        request = agent_pb2.ListTasksRequest(page_size=1000, page_token=token)
        page = agent.ListTasks(request, timeout=LIMIT, wait_for_ready=True)
        for task in page.tasks:
            if task.correlation_id.startswith(mark):
                seen[task.correlation_id] += 1
                if task.state != task_pb2.TASK_STATE_COMPLETED:
                    book.fail(f"{task.correlation_id} {task.id} stands as {task.state}")
        token = page.next_page_token
        if not token:
            break
    for name, count in seen.items():
        if count > 1:
            book.fail(f"{name}: {count} tasks")
    wanted = book.count["run_task"] + book.count["submit"]
    if len(seen) != wanted:
        book.fail(f"{len(seen)} tasks for {wanted} submissions")


if __name__ == "__main__":
    sidecar, skill, callers, mark = sys.argv[1:]
    book, stop = Book(), threading.Event()
    with grpc.insecure_channel(sidecar, OPTIONS) as channel:
        all_of_them = [
            Caller(channel, skill, f"{mark}-{place}", book, stop) for place in range(int(callers))
        ]
        for caller in all_of_them:
            caller.start()
        sys.stdin.read()
        stop.set()
        for caller in all_of_them:
            caller.join()
        look_over(channel, mark, book)
    print(json.dumps(dict(book.count, longest=round(book.longest, 2), said=book.failures)))
