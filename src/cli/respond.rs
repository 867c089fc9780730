//! `attache task respond`: answers what a task asks, and tells how to.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::{
        args::MeshArgs,
        content::content,
        exit::{Exit, Failed},
        mesh::Mesh,
        output::{Output, clean},
        show,
        task::print_task,
    },
    pb::{self, agent_client::AgentClient},
    runtime::Nursery,
    transport::Channel,
};

/// An answer to a task.
#[derive(Debug, Args)]
pub struct RespondArgs {
    /// How to find the mesh.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Id, as submit printed it
    pub id: String,
    /// Which question [default: what it asks now]
    #[arg(long, value_name = "ID")]
    pub question: Option<String>,
    /// Answer as text
    #[arg(long, short)]
    pub text: Option<String>,
    /// Answer as JSON
    #[arg(long, short, value_name = "JSON")]
    pub data: Option<String>,
    /// Answer from a file
    #[arg(long, short, value_name = "FILE")]
    pub file: Vec<PathBuf>,
}

/// Answers the question that is named, or the one that is open.
///
/// # Errors
/// What the task's home answers, or that the task asks nothing.
pub(super) async fn run(
    args: &RespondArgs,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    let parts = content(args.text.as_ref(), args.data.as_ref(), &args.file)?;
    if parts.is_empty() {
        let text = "there is no answer: give --text, --data or --file";
        return Err(Failed::usage(text));
    }
    let mut home = Mesh::find(&args.mesh, nursery)?.home_of(&args.id).await?;
    let question_id = match &args.question {
        Some(question) => question.clone(),
        None => open(&mut home, &args.id).await?,
    };
    let request = pb::RespondTaskRequest {
        task_id: args.id.clone(),
        question_id,
        parts,
    };
    let answer = home.respond_task(request).await?.into_inner();
    if answer.replayed {
        output.note("this answer was given before: here is the task as it stands");
    }
    print_task(&answer.task.unwrap_or_default(), output);
    Ok(Exit::Done)
}

/// Id of what the task asks now.
async fn open(home: &mut AgentClient<Channel>, id: &str) -> Result<String, Failed> {
    let request = pb::GetTaskRequest {
        task_id: id.to_owned(),
        view: pb::TaskView::Basic.into(),
    };
    let task = home.get_task(request).await?.into_inner().task;
    let task = task.unwrap_or_default();
    match task.question {
        Some(question) => Ok(question.question_id),
        None => Err(Failed::new(
            Exit::Fault,
            format!(
                "the task asks nothing now, it is {} (TASK_ASKS_NOTHING)",
                show::state(task.state())
            ),
        )),
    }
}

/// A question for people.
pub(super) fn question(question: &pb::Question) -> String {
    let kind = if question.auth {
        "asks for a right"
    } else {
        "asks"
    };
    let id = clean(&question.question_id);
    let mut text = format!("{kind} ({id}): {}", show::asked(question));
    if !question.answer_schema.is_empty() {
        text.push_str("\nas JSON that fits ");
        text.push_str(&show::schema(&question.answer_schema));
    }
    text
}

/// How to answer it from the shell.
pub(super) fn how(id: &str, question: &pb::Question, mesh: &MeshArgs) -> String {
    let (mesh, program) = (mesh.flags(), super::program());
    let content = if question.answer_schema.is_empty() {
        "--text TEXT".to_owned()
    } else {
        let schema = show::schema(&question.answer_schema);
        format!("--data JSON\n  JSON that fits {schema}")
    };
    format!("  to answer: {program} task respond{mesh} {id} {content}")
}
