//! What the flags of a command say, as parts of a task's input or of an answer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cli::exit::Failed,
    pb::{self, part::Content},
    wire::json,
};

/// Largest input that is read from files: what a task may carry, in bytes.
const INPUT_MAX: u64 = 1 << 20;

/// A text, a JSON value and files, in this order, as far as they are given.
///
/// # Errors
/// What is no JSON, and files that cannot be read or are larger than a task takes.
pub(super) fn content(
    text: Option<&String>,
    data: Option<&String>,
    files: &[PathBuf],
) -> Result<Vec<pb::Part>, Failed> {
    let mut content = Vec::new();
    if let Some(text) = text {
        content.push(text_part(text.clone()));
    }
    if let Some(data) = data {
        let value: serde_json::Value = serde_json::from_str(data)
            .map_err(|error| Failed::usage(format!("--data is no JSON: {error}")))?;
        content.push(pb::Part {
            content: Some(Content::Data(json::to_value(value))),
            media_type: "application/json".to_owned(),
            ..Default::default()
        });
    }
    for path in files {
        content.push(file_part(path)?);
    }
    Ok(content)
}

fn text_part(text: String) -> pb::Part {
    let content = Some(Content::Text(text));
    pb::Part {
        content,
        media_type: "text/plain".to_owned(),
        ..Default::default()
    }
}

fn file_part(path: &Path) -> Result<pb::Part, Failed> {
    let wrong = |text: String| Failed::usage(format!("--file {}: {text}", path.display()));
    let size = fs::metadata(path)
        .map_err(|error| wrong(error.to_string()))?
        .len();
    if size > INPUT_MAX {
        return Err(wrong(format!(
            "{size} bytes; a task takes {INPUT_MAX}: pass where it is"
        )));
    }
    let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let part = match String::from_utf8(bytes) {
        Ok(text) => text_part(text),
        Err(raw) => pb::Part {
            content: Some(Content::Raw(raw.into_bytes().into())),
            media_type: "application/octet-stream".to_owned(),
            ..Default::default()
        },
    };
    let filename = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    Ok(pb::Part {
        filename: filename.unwrap_or_default(),
        ..part
    })
}
