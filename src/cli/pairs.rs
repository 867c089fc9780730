//! Words of the command line that say two things.

/// An agent, with its namespace or without, and a skill of it.
pub(super) fn scoped(text: &str) -> Result<(String, String), String> {
    let (agent, skill) = text.rsplit_once('/').ok_or("write AGENT/SKILL")?;
    Ok((agent.to_owned(), skill.to_owned()))
}

/// A key and its value.
pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
