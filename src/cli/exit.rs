//! Exit codes, and how a failure becomes one. Documented in `attache --help`.

use tonic::{Code, Status};

use crate::{pb, pb::TaskState};

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// A fault of ours or of the machine.
    Fault,
    /// Wrong arguments or configuration.
    Usage,
    /// The task failed or was rejected.
    TaskFailed,
    /// The task was canceled.
    TaskCanceled,
    /// No such agent, task or mesh.
    NotFound,
    /// Not allowed.
    Refused,
    /// The mesh cannot be reached.
    Unreachable,
    /// A deadline passed.
    Deadline,
    /// Ctrl-C.
    Interrupted,
    /// Whatever a command that ran against the mesh ended with.
    Command(u8),
}

impl Exit {
    /// The code that the process ends with.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Fault => 1,
            Self::Usage => 2,
            Self::TaskFailed => 3,
            Self::TaskCanceled => 4,
            Self::NotFound => 5,
            Self::Refused => 6,
            Self::Unreachable => 7,
            Self::Deadline => 8,
            Self::Interrupted => 130,
            Self::Command(code) => code,
        }
    }
}

/// A failure with its exit code, for the one place that prints it.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Failed {
    /// The exit code.
    pub exit: Exit,
    /// What happened and what to do next.
    pub text: String,
}

impl Failed {
    /// A failure with its sentence.
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self {
            exit,
            text: text.into(),
        }
    }

    /// Wrong arguments or configuration.
    pub fn usage(error: impl std::fmt::Display) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }

    /// A fault of ours or of the machine.
    pub fn fault(error: impl std::fmt::Display) -> Self {
        Self::new(Exit::Fault, error.to_string())
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        let exit = match status.code() {
            Code::Ok => Exit::Done,
            Code::NotFound => Exit::NotFound,
            Code::PermissionDenied | Code::Unauthenticated => Exit::Refused,
            Code::Unavailable => Exit::Unreachable,
            Code::DeadlineExceeded => Exit::Deadline,
            Code::InvalidArgument | Code::Unimplemented => Exit::Usage,
            Code::Cancelled
            | Code::Unknown
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Internal
            | Code::DataLoss => Exit::Fault,
        };
        let reason = crate::wire::status::reason_of(&status);
        let reason = reason.unwrap_or_else(|| format!("{:?}", status.code()));
        let hint = match reason.as_str() {
            "PEER_UNREACHABLE" => "; is it running? `attache up` and `attache registry` start one",
            _ => "",
        };
        Self::new(exit, format!("{} ({reason}){hint}", status.message()))
    }
}

/// The exit code of a task's end.
pub fn of_task(task: &pb::Task) -> Exit {
    let deadline = task
        .failure
        .as_ref()
        .is_some_and(|why| why.reason == "DEADLINE_EXCEEDED");
    match task.state() {
        TaskState::Completed => Exit::Done,
        TaskState::Canceled => Exit::TaskCanceled,
        TaskState::Failed if deadline => Exit::Deadline,
        TaskState::Failed
        | TaskState::Rejected
        | TaskState::Unspecified
        | TaskState::Submitted
        | TaskState::Working
        | TaskState::InputRequired
        | TaskState::AuthRequired => Exit::TaskFailed,
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
