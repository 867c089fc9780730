//! Child processes: each in a process group of its own with a log file of its own, started again
//! with backoff when it dies, ended with its whole group.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::{
    process::{Child, Command},
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::runtime::{Backoff, Nursery, Stop};

/// A log is kept up to this size and started anew above it, in bytes; the one before is kept too.
const LOG_MAX: u64 = 16 << 20;
/// How often a log's size is looked at: each call that is served is a line of it.
const LOG_LOOK: Duration = Duration::from_secs(5);
/// Lines of the log that are shown when a process dies.
const LAST_LINES: usize = 12;
/// A process that lived this long starts its backoff anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// First and longest wait before a process is started again.
const RESTART: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
/// How long killed processes may still be there: init reaps orphans in its own time.
const REAPED: Duration = Duration::from_secs(5);
/// How long what a child has started may outlive it.
const LEFT: Duration = Duration::from_secs(2);
/// How often a group is looked at while it ends; there is no event for the end of a group.
const GROUP_POLL: Duration = Duration::from_millis(20);

/// What to run and how it is called.
#[derive(Clone, Debug)]
pub struct Job {
    /// Name in messages and of the log file.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment beside our own.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub dir: PathBuf,
    /// Log file.
    pub log: PathBuf,
    /// How long it may take to end after SIGTERM.
    pub grace: Duration,
}

/// What happened to a child.
#[derive(Debug)]
pub enum ChildEvent {
    /// It runs; the process group is its pid.
    Started {
        /// Its name.
        name: String,
        /// Its pid.
        pid: u32,
    },
    /// It ended though nobody asked it to.
    Died {
        /// Its name.
        name: String,
        /// How, in words.
        how: String,
        /// The last lines of its log.
        last_lines: String,
        /// When it is started again.
        again_in: Duration,
    },
}

/// A process that is kept running until it is stopped.
#[derive(Debug)]
pub struct Supervised {
    grace: Duration,
    stop: Stop,
    ended: mpsc::Receiver<()>,
}

impl Supervised {
    /// Starts the job in `nursery` and tells `events` what happens to it.
    pub fn start(nursery: &Nursery, job: Job, events: mpsc::Sender<ChildEvent>) -> Self {
        // Ends with the nursery too: whoever drops us in the middle of a start leaves no orphan.
        let stop = nursery.stop_token().child_token();
        let (done, ended) = mpsc::channel(1);
        let (stopped, grace) = (stop.clone(), job.grace);
        nursery.adopt("child", async move {
            supervise(job, events, stopped).await;
            drop(done);
        });
        Self { grace, stop, ended }
    }

    /// Asks the process group to end, and cuts it after its grace.
    pub async fn end(mut self) {
        self.stop.cancel();
        if timeout(self.grace + LEFT + REAPED, self.ended.recv())
            .await
            .is_err()
        {
            tracing::error!("a child did not end though it was killed");
        }
    }
}

async fn supervise(job: Job, events: mpsc::Sender<ChildEvent>, stop: Stop) {
    let mut backoff = RESTART;
    while !stop.is_cancelled() {
        let started = Instant::now();
        let said_before = fs::metadata(&job.log).map_or(0, |log| log.len());
        let how = match spawn(&job) {
            Ok(mut child) => {
                let pid = child.id().unwrap_or(0);
                // Held until it has ended, since `wait` would close it: an attache child drains when
                // it closes, so that none outlives an `up` that was killed.
                let stdin = child.stdin.take();
                tell(
                    &events,
                    ChildEvent::Started {
                        name: job.name.clone(),
                        pid,
                    },
                )
                .await;
                tokio::select! {
                    status = child.wait() => {
                        end_group(pid, Duration::ZERO).await;
                        match status {
                            Ok(status) => in_words(status),
                            Err(error) => format!("cannot be waited for: {error}"),
                        }
                    }
                    never = keep_small(&job.log) => match never {},
                    () = stop.cancelled() => {
                        end_child(child, pid, job.grace).await;
                        drop(stdin);
                        return;
                    }
                }
            }
            Err(error) => format!("cannot start {}: {error}", job.command.join(" ")),
        };
        if started.elapsed() > HEALTHY_AFTER {
            backoff.reset();
        }
        let again_in = backoff.next(1.0);
        let last_lines = last_lines(&job.log, said_before);
        let died = ChildEvent::Died {
            name: job.name.clone(),
            how,
            last_lines,
            again_in,
        };
        tell(&events, died).await;
        tokio::select! {
            () = sleep(again_in) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn end_child(mut child: Child, pid: u32, grace: Duration) {
    signal_group(pid, Signal::TERM);
    if timeout(grace, child.wait()).await.is_err() {
        tracing::warn!(pid, ?grace, "a child did not end in its time and is killed");
        signal_group(pid, Signal::KILL);
        drop(child.wait().await);
    }
    end_group(pid, LEFT).await;
}

/// Waits up to `grace` for what is left of a group whose leader has ended, then kills it.
async fn end_group(pid: u32, grace: Duration) {
    let until = Instant::now() + grace;
    while group_lives(pid) && Instant::now() < until {
        sleep(GROUP_POLL).await;
    }
    signal_group(pid, Signal::KILL);
    let gone = Instant::now() + REAPED;
    while group_lives(pid) && Instant::now() < gone {
        sleep_until(Instant::now() + GROUP_POLL).await;
    }
}

/// Sends a signal to every process of a group; one that is gone is no error.
pub fn signal_group(pid: u32, signal: Signal) {
    if let Some(group) = group(pid)
        && let Err(error) = kill_process_group(group, signal)
        && error != rustix::io::Errno::SRCH
    {
        tracing::debug!(pid, %error, "cannot signal the group");
    }
}

/// Whether any process of a group lives.
pub fn group_lives(pid: u32) -> bool {
    group(pid).is_some_and(|group| test_kill_process_group(group).is_ok())
}

fn group(pid: u32) -> Option<Pid> {
    // Group 0 and 1 would be our own and init's.
    i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 1)
        .and_then(Pid::from_raw)
}

fn spawn(job: &Job) -> io::Result<Child> {
    if job.log.exists() {
        cut_log(&job.log)?;
    }
    let log = File::options().create(true).append(true).open(&job.log)?;
    let [program, arguments @ ..] = &job.command[..] else {
        return Err(io::Error::other("the command is empty"));
    };
    Command::new(program)
        .args(arguments)
        .envs(&job.env)
        .current_dir(&job.dir)
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Bounds a log while its process writes it. What is written in the moment between copy and cut is
/// lost: the process holds the file open, and cannot be told to open another.
async fn keep_small(log: &Path) -> Infallible {
    loop {
        sleep(LOG_LOOK).await;
        if let Err(error) = cut_log(log) {
            tracing::warn!(log = %log.display(), %error, "a log that is too long cannot be cut");
        }
    }
}

fn cut_log(log: &Path) -> io::Result<()> {
    if fs::metadata(log)?.len() <= LOG_MAX {
        return Ok(());
    }
    fs::copy(log, log.with_extension("log.old"))?;
    File::options().write(true).open(log)?.set_len(0)
}

fn in_words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => format!("ended: {status}"),
    }
}

/// The end of a log, for people: at most some lines and 8 KiB, and nothing before the byte `from`,
/// where the present process began to write.
pub fn last_lines(log: &Path, from: u64) -> String {
    const TAIL: u64 = 8 << 10;
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let size = file.metadata()?.len();
        // A log that is shorter than that was begun anew.
        let from = if from > size { 0 } else { from };
        file.seek(SeekFrom::Start(from.max(size.saturating_sub(TAIL))))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

async fn tell(events: &mpsc::Sender<ChildEvent>, event: ChildEvent) {
    if events.send(event).await.is_err() {
        tracing::debug!("nobody listens to the children any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(dir: &Path, script: &str) -> Job {
        Job {
            name: "x".into(),
            command: ["sh", "-c", script].map(String::from).to_vec(),
            env: BTreeMap::new(),
            dir: dir.to_path_buf(),
            log: dir.join("x.log"),
            grace: Duration::from_secs(10),
        }
    }

    #[test]
    fn a_log_that_grew_too_long_is_begun_anew_and_its_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        use std::io::Write as _;
        let mut writer = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        writer.write_all(b"short\n").unwrap();
        cut_log(&log).unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"short\n");
        let long = usize::try_from(LOG_MAX).unwrap();
        writer.write_all(&vec![b'x'; long]).unwrap();
        cut_log(&log).unwrap();
        writer.write_all(b"next\n").unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"next\n");
        let before = fs::metadata(dir.path().join("x.log.old")).unwrap();
        assert_eq!(before.len(), LOG_MAX + 6);
    }

    #[tokio::test]
    async fn a_child_that_dies_is_shown_and_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let nursery = Nursery::here();
        let (tell, mut told) = mpsc::channel(8);
        let child = Supervised::start(&nursery, job(dir.path(), "echo oh no; exit 3"), tell);
        let mut starts = 0;
        while starts < 2 {
            match told.recv().await.unwrap() {
                ChildEvent::Started { .. } => starts += 1,
                ChildEvent::Died {
                    how, last_lines, ..
                } => {
                    assert_eq!(how, "ended with exit code 3");
                    assert!(last_lines.ends_with("oh no"), "{last_lines}");
                }
            }
        }
        child.end().await;
    }

    #[test]
    fn only_the_present_process_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        fs::write(&log, "an earlier run\nthis run\n").unwrap();
        assert_eq!(last_lines(&log, 15), "this run");
        assert_eq!(last_lines(&log, 24), "");
        assert_eq!(last_lines(&log, 99), "an earlier run\nthis run");
    }

    #[tokio::test]
    async fn a_nursery_that_closes_leaves_no_child_behind() {
        let dir = tempfile::tempdir().unwrap();
        let nursery = Nursery::here();
        let (tell, mut told) = mpsc::channel(8);
        let child = Supervised::start(&nursery, job(dir.path(), "sleep 100"), tell);
        let Some(ChildEvent::Started { pid, .. }) = told.recv().await else {
            panic!("no start")
        };
        drop((child, told));
        nursery.close(Duration::from_secs(10)).await;
        assert!(!group_lives(pid));
    }

    #[tokio::test]
    async fn the_whole_group_ends() {
        let dir = tempfile::tempdir().unwrap();
        let nursery = Nursery::here();
        let (tell, mut told) = mpsc::channel(8);
        let script = "trap 'exit 0' TERM; sh -c 'trap \"\" TERM; sleep 100' & wait";
        let child = Supervised::start(&nursery, job(dir.path(), script), tell);
        let Some(ChildEvent::Started { pid, .. }) = told.recv().await else {
            panic!("no start")
        };
        assert!(group_lives(pid));
        child.end().await;
        assert!(!group_lives(pid), "a grandchild is left");
    }
}
