//! Every family of metrics that there is: what programs and dashboards build on.
//!
//! A change here is a change of the contract: `tests/golden/metrics.txt` and docs/operating.md
//! follow it, and tests hold them to it.

use std::fmt;

/// What may be done with a family's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

/// Metrics of one name, told apart by `N` labels.
#[derive(Clone, Copy, Debug)]
pub struct Family<const N: usize> {
    /// As it is queried: with its unit, and with `_total` where it is a counter.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its unit, which its name bears.
    pub unit: Option<&'static str>,
    /// Names of its labels, in the order in which rows give their values.
    pub labels: [&'static str; N],
    /// One sentence.
    pub help: &'static str,
}

impl<const N: usize> Family<N> {
    /// The name without what the encoder adds.
    pub(super) fn stem(&self) -> &'static str {
        let stem = match self.kind {
            Kind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            Kind::Gauge | Kind::Histogram => self.name,
        };
        let unit = self.unit.and_then(|unit| stem.strip_suffix(unit));
        unit.map_or(stem, |stem| stem.trim_end_matches('_'))
    }
}

/// A family as the table of all shows it.
impl<const N: usize> fmt::Display for Family<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let unit = self.unit.unwrap_or("-");
        let labels = match self.labels.join(",") {
            none if none.is_empty() => "-".to_owned(),
            some => some,
        };
        write!(f, "{} {kind} {unit} {labels} {}", self.name, self.help)
    }
}

macro_rules! families {
    ($($constant:ident $name:literal $kind:ident $unit:expr, [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Family<{ <[&str]>::len(&[$($label),*]) }> = Family {
                name: $name,
                kind: Kind::$kind,
                unit: $unit,
                labels: [$($label),*],
                help: $help,
            };
        )*

        /// All of them, a line each: name, type, unit, labels by commas, help; `-` where there is
        /// none.
        pub fn table() -> Vec<String> {
            vec![$($constant.to_string()),*]
        }
    };
}

const SECONDS: Option<&str> = Some("seconds");
const BYTES: Option<&str> = Some("bytes");

families! {
    BUILD_INFO "attache_build_info" Gauge None, ["version", "role"]
        "Always 1; which version runs, and as what.";

    CALLS "attache_calls_total" Counter None, ["listener", "service", "method", "code"]
        "gRPC calls served, by how they ended.";
    CALL_DURATION "attache_call_duration_seconds" Histogram SECONDS, ["listener", "service", "method"]
        "From a call's head to its last byte; a stream counts when it ends.";
    CALLS_IN_FLIGHT "attache_calls_in_flight" Gauge None, ["listener", "service", "method"]
        "gRPC calls under way.";
    CALL_RECEIVED "attache_call_received_bytes_total" Counter BYTES, ["listener", "service", "method"]
        "Bytes of requests' bodies.";
    CALL_SENT "attache_call_sent_bytes_total" Counter BYTES, ["listener", "service", "method"]
        "Bytes of answers' bodies.";
    CONNECTIONS "attache_connections" Gauge None, ["listener"]
        "Open connections, with those in their handshake.";
    HANDSHAKES "attache_handshakes_total" Counter None, ["listener", "outcome"]
        "Connections that came in, by what became of them.";
    PEER_CALLS "attache_peer_calls_total" Counter None, ["service", "method", "code"]
        "gRPC calls made to other members, by how they ended.";
    PASSING "attache_passing_calls_total" Counter None, ["direction", "agent", "service", "method", "code"]
        "Calls that passed this sidecar to an agent, by their status.";
    PASSING_ENDED "attache_passing_ended_total" Counter None, ["direction", "agent", "service", "method", "by"]
        "Calls that passed this sidecar to an agent, by who or what ended them.";
    PASSING_DURATION "attache_passing_duration_seconds" Histogram SECONDS, ["direction", "agent", "service", "method"]
        "From a passing call's head to its last byte; a stream counts when it ends.";
    PASSING_IN_FLIGHT "attache_passing_in_flight" Gauge None, ["direction", "agent", "service", "method"]
        "Passing calls under way.";
    PASSING_RECEIVED "attache_passing_received_bytes_total" Counter BYTES, ["direction", "agent", "service", "method"]
        "Bytes of passing requests' bodies.";
    PASSING_SENT "attache_passing_sent_bytes_total" Counter BYTES, ["direction", "agent", "service", "method"]
        "Bytes of passing answers' bodies.";
    PASSING_AGAIN "attache_passing_second_tries_total" Counter None, ["direction", "agent", "service", "method"]
        "Times that a passing call was given to somebody after the first one.";
    POOL_CONNECTIONS "attache_pool_connections" Gauge None, ["pool"]
        "Open connections that this process has made.";
    POOL_DIALS "attache_pool_dials_total" Counter None, ["pool", "outcome"]
        "Dials of this process, by what became of them.";
    POOL_CLOSES "attache_pool_closes_total" Counter None, ["pool", "reason"]
        "Connections that this process had made and that have ended, by why.";

    TASKS "attache_tasks" Gauge None, ["state"]
        "Tasks of this home that have not ended, by their state.";
    TASKS_WAITING "attache_tasks_waiting" Gauge None, []
        "Tasks of this home that wait for an executor with room.";
    TASKS_ENDED "attache_tasks_ended" Gauge None, []
        "Tasks of this home that have ended and are still in memory.";
    TASKS_SUBMITTED "attache_tasks_submitted_total" Counter None, ["skill"]
        "Tasks that this home has acknowledged.";
    TASKS_FINISHED "attache_tasks_finished_total" Counter None, ["state", "skill", "reason"]
        "Tasks of this home that have ended, by how and why.";
    TASK_START "attache_task_start_seconds" Histogram SECONDS, []
        "From a task's submission until an agent took it.";
    TASK_DURATION "attache_task_duration_seconds" Histogram SECONDS, ["state"]
        "From a task's submission to its end.";
    ATTEMPTS "attache_attempts_total" Counter None, ["kind"]
        "Attempts that this home gave to executors: a task's first, or another one.";
    TASK_WATCHERS "attache_task_watchers" Gauge None, []
        "Streams that follow a task of this home.";
    CALLBACKS "attache_callbacks_total" Counter None, ["target", "outcome"]
        "Tries of this home to tell a task's change to whoever is called back, by what came of them.";
    CALLBACKS_GIVEN_UP "attache_callbacks_given_up_total" Counter None, ["target", "reason"]
        "Times that this home stopped to tell a task's changes to whoever is called back, by why.";
    CALLBACKS_WAITING "attache_callbacks_waiting" Gauge None, []
        "Tasks of this home with changes that are still to be told to whoever is called back.";

    PICKS "attache_dispatch_picks_total" Counter None, ["outcome"]
        "Looks of this home for an instance that takes a task, by what came of them.";
    DISPATCHES "attache_dispatches_total" Counter None, ["outcome"]
        "Dispatches of this home that have ended, by what they said of their instance.";
    FAULTS_INJECTED "attache_faults_injected_total" Counter None, ["kind"]
        "Dispatches of this home that a traffic rule delayed or made to fail.";
    BREAKERS "attache_breakers" Gauge None, ["state"]
        "Instances in the catalog, by the state of their breaker as this sidecar has it.";
    BREAKER_OPENINGS "attache_breaker_openings_total" Counter None, ["reason"]
        "Breakers that opened, by why.";
    BREAKER_CLOSINGS "attache_breaker_closings_total" Counter None, ["reason"]
        "Breakers that closed, by why.";
    EJECTED "attache_ejected_instances" Gauge None, []
        "Instances left out for their failures, once for each thing that tasks asked for in the last minute.";

    EXECUTOR_SLOTS "attache_executor_slots" Gauge None, []
        "Attempts that may run at once on the own agent.";
    EXECUTOR_RUNNING "attache_executor_running" Gauge None, []
        "Attempts that run on the own agent.";
    EXECUTOR_KNOWN "attache_executor_known" Gauge None, []
        "Attempts that run, or whose last update no home has acknowledged yet.";
    EXECUTOR_WAITING "attache_executor_waiting" Gauge None, []
        "Tasks that wait at their homes for a slot here, as those said, and have no grant.";
    EXECUTOR_RESERVED "attache_executor_reserved" Gauge None, []
        "Slots that are granted to a home and not used yet.";
    EXECUTOR_GRANTS "attache_executor_grants_total" Counter None, ["outcome"]
        "Slots that were granted to homes, by what became of them.";

    AGENT_HEALTHY "attache_agent_healthy" Gauge None, []
        "1 while the own agent is healthy: it gets new work.";
    AGENT_LOOKS "attache_agent_looks_total" Counter None, ["kind", "outcome"]
        "Looks at the own agent, by how it was asked and what came of it.";

    JOURNAL_RECORDS "attache_journal_records_total" Counter None, []
        "Records written to the journal.";
    JOURNAL_BYTES "attache_journal_written_bytes_total" Counter BYTES, []
        "Bytes written to the journal.";
    JOURNAL_SYNC "attache_journal_sync_duration_seconds" Histogram SECONDS, []
        "Write and sync of a batch.";
    JOURNAL_BATCH "attache_journal_batch_records" Histogram None, []
        "Records that one sync put on disk.";
    JOURNAL_PENDING "attache_journal_pending_bytes" Gauge BYTES, []
        "Bytes that wait for a sync.";
    JOURNAL_SEGMENTS "attache_journal_segments" Gauge None, []
        "Segments of the journal on disk.";
    JOURNAL_LOW_SPACE "attache_journal_low_space" Gauge None, []
        "1 while the disk has no room for the next segment: new tasks are refused.";
    JOURNAL_FAILED "attache_journal_failed" Gauge None, []
        "1 once a write or sync has failed: the process ends.";

    BLOBS "attache_blobs" Gauge None, []
        "Large contents of tasks on disk, each counted once.";
    BLOB_BYTES "attache_blob_bytes" Gauge BYTES, []
        "Their bytes.";
    BLOB_DISK "attache_blob_disk_bytes" Gauge BYTES, []
        "Bytes of the files that hold them, with what is still to be removed.";
    BLOBS_COLLECTED "attache_blobs_collected_total" Counter None, []
        "Large contents that no task named any more.";
    BLOBS_DAMAGED "attache_blobs_damaged_total" Counter None, []
        "Large contents that did not check when they were read.";

    ARCHIVE_TASKS "attache_archive_tasks" Gauge None, []
        "Finished tasks in the archive.";
    ARCHIVE_BYTES "attache_archive_bytes" Gauge BYTES, []
        "Their bytes, with events.";
    ARCHIVE_MOVED "attache_archive_moved_total" Counter None, []
        "Finished tasks that the archive has taken in.";
    ARCHIVE_RETIRED "attache_archive_retired_total" Counter None, []
        "Finished tasks that the archive has let go of.";
    ARCHIVE_FAILURES "attache_archive_failures_total" Counter None, []
        "Writes and openings of the archive that failed.";

    REGISTERED "attache_registered" Gauge None, []
        "1 while this instance is in the catalog, as far as it knows.";
    BEAT_AGE "attache_registration_heartbeat_age_seconds" Gauge SECONDS, []
        "Since the registry last accepted a heartbeat of this instance.";
    CATALOG_INSTANCES "attache_catalog_instances" Gauge None, []
        "Instances in this sidecar's copy of the catalog.";
    CATALOG_FRESH "attache_catalog_fresh" Gauge None, []
        "1 while the copy of the catalog follows the registry.";
    CATALOG_AGE "attache_catalog_word_age_seconds" Gauge SECONDS, []
        "Since the registry last said anything about the catalog.";

    REGISTRY_INSTANCES "attache_registry_instances" Gauge None, ["health"]
        "Instances in the catalog, by what they report.";
    REGISTRY_LEASES "attache_registry_leases" Gauge None, []
        "Leases that members hold.";
    REGISTRY_BEAT_AGE "attache_registry_oldest_heartbeat_age_seconds" Gauge SECONDS, []
        "Since the most silent of those that hold a lease was heard.";
    REGISTRY_REVISION "attache_registry_revision" Gauge None, []
        "Number of the catalog's last change.";
    REGISTRY_WATCHES "attache_registry_watches" Gauge None, []
        "Streams that follow the catalog.";
    REGISTRY_WATCH_MESSAGES "attache_registry_watch_messages_total" Counter None, []
        "Messages sent to those who follow the catalog.";

    CERTIFICATE_LEFT "attache_certificate_remaining_seconds" Gauge SECONDS, ["certificate"]
        "Left of a certificate's life, negative after its end: the own one, and the issuing CA's.";
    RENEWALS "attache_certificate_renewals_total" Counter None, ["outcome"]
        "Renewals of the own certificate that were tried.";
    ENROLMENTS "attache_enrolments_total" Counter None, ["kind", "outcome"]
        "Requests to join or rejoin the mesh: granted, or the reason of the refusal.";

    LOG_LINES "attache_log_lines_total" Counter None, ["level"]
        "Lines that were logged.";
    SPANS_SENT "attache_spans_sent_total" Counter None, []
        "Spans that the collector of traces took.";
    SPANS_DROPPED "attache_spans_dropped_total" Counter None, []
        "Spans that were lost: the queue was full, or the collector did not take them.";

    PROCESS_START "process_start_time_seconds" Gauge SECONDS, []
        "When the process was started, in Unix time.";
    PROCESS_CPU "process_cpu_seconds_total" Counter SECONDS, []
        "Processor time that the process has used.";
    PROCESS_MEMORY "process_resident_memory_bytes" Gauge BYTES, []
        "Resident memory.";
    PROCESS_FDS "process_open_fds" Gauge None, []
        "Open file descriptors.";
    PROCESS_MAX_FDS "process_max_fds" Gauge None, []
        "Most file descriptors that it may open.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_in_the_golden_file() {
        let golden = include_str!("../../../tests/golden/metrics.txt");
        let golden: Vec<&str> = golden.lines().collect();
        assert_eq!(
            table(),
            golden,
            "a change of the contract: change the file with it"
        );
    }

    #[test]
    fn names_follow_the_fields_rules() {
        let mut names = std::collections::HashSet::new();
        for line in table() {
            let words: Vec<&str> = line.splitn(5, ' ').collect();
            let [name, kind, unit, labels, help] = words[..] else {
                panic!("{line}");
            };
            assert!(names.insert(name.to_owned()), "{name} twice");
            assert!(
                name.starts_with("attache_") || name.starts_with("process_"),
                "{name}"
            );
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            let stem = name.trim_end_matches("_total");
            for known in ["seconds", "bytes"] {
                assert_eq!(stem.ends_with(known), unit == known, "{name}");
            }
            let all = format!("{name}{labels}");
            assert!(
                all.bytes()
                    .all(|b| b.is_ascii_lowercase() || b"_,-".contains(&b)),
                "{line}"
            );
            assert!(
                help.ends_with('.') && !help.contains(['\n', '\\', '"']),
                "{help}"
            );
        }
    }
}
