//! `attache bench`: calls of gRPC through any path, counted and timed, and an end that answers them.
//!
//! Owns both ends of a measurement and nothing between them. Refuses to call anything good that did
//! not end with status OK.

pub(super) mod args;
mod call;
mod echo;
mod histogram;
mod line;
mod load;
mod message;
mod pace;
mod report;
mod serve;
mod tally;
mod target;
#[cfg(test)]
mod tests;

use std::fs;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use self::{
    args::{BenchArgs, Kind},
    call::Template,
    load::Plan,
    message::{MESSAGE_MAX, SERVICE},
    report::Report,
    target::Target,
};
use super::{
    exit::{Exit, Failed},
    output::Output,
};
use crate::config::Size;
use crate::runtime::Nursery;

/// Calls, or answers.
///
/// # Errors
/// When an argument cannot be right, the target cannot be reached, or the address is taken.
pub(super) async fn run(
    args: BenchArgs,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    let Some(url) = args.target.as_deref() else {
        return serve::serve(&args, output, nursery).await;
    };
    let answer = args.answer.unwrap_or(args.size);
    let plan = plan(url, &args, answer)?;
    let ran = Box::pin(load::run(&plan)).await;
    let tally = ran.map_err(|error| {
        let text = format!(
            "{url} does not take calls: {error}; `attache bench --serve` is an end that does"
        );
        Failed::new(Exit::Unreachable, text)
    })?;
    let report = Report {
        plan: &plan,
        target: url,
        size: args.size,
        answer,
        tally: &tally,
    };
    report.print(output);
    Ok(match tally.failed_calls() {
        0 => Exit::Done,
        _ => Exit::Fault,
    })
}

fn plan(url: &str, args: &BenchArgs, answer: Size) -> Result<Plan, Failed> {
    let target = Target::of(url, args)?;
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    if args.time.0.is_zero() {
        return Err(Failed::usage("--time: nothing can be measured in no time"));
    }
    if args.rate.is_some() && args.kind == Kind::ServerStream {
        let text =
            "--rate paces calls; a server stream has one call, and its answers pace themselves";
        return Err(Failed::usage(text));
    }
    Ok(Plan {
        template: template(&target, args, answer)?,
        target,
        kind: args.kind,
        callers: count(args.callers),
        connections: count(args.connections.min(args.callers)),
        threads: count(args.threads),
        rate: args.rate,
        warmup: args.warmup.0,
        time: args.time.0,
    })
}

fn template(target: &Target, args: &BenchArgs, answer: Size) -> Result<Template, Failed> {
    let path = match (&args.method, args.kind) {
        (Some(method), _) => format!("/{}", method.trim_start_matches('/')),
        (None, Kind::Unary) => format!("{SERVICE}UnaryCall"),
        (None, Kind::ServerStream) => format!("{SERVICE}StreamingFromServer"),
        (None, Kind::PingPong) => format!("{SERVICE}StreamingCall"),
    };
    let uri = Uri::builder()
        .scheme(target.scheme())
        .authority(target.authority.clone())
        .path_and_query(path)
        .build()
        .map_err(Failed::usage)?;
    let mut headers = HeaderMap::new();
    headers.insert("te", HeaderValue::from_static("trailers"));
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    for (key, value) in &args.metadata {
        let wrong = |error: &dyn std::fmt::Display| {
            Failed::usage(format!("--metadata {key}={value}: {error}"))
        };
        let name: HeaderName = key.parse().map_err(|error| wrong(&error))?;
        headers.append(name, value.parse().map_err(|error| wrong(&error))?);
    }
    Ok(Template {
        uri,
        headers,
        message: message(args, answer)?,
    })
}

/// What each call sends.
fn message(args: &BenchArgs, answer: Size) -> Result<Bytes, Failed> {
    if let Some(path) = &args.message {
        let read = fs::read(path);
        let read = read.map_err(|error| Failed::usage(format!("{}: {error}", path.display())))?;
        return Ok(message::prefixed(&read));
    }
    let fits = |size: Size| Some(size.0).filter(|size| *size <= MESSAGE_MAX);
    let too_large = || Failed::usage(format!("a message has {} at most", Size(MESSAGE_MAX)));
    let size = fits(args.size).and_then(|size| usize::try_from(size).ok());
    let answer = fits(answer).and_then(|size| i32::try_from(size).ok());
    let (size, answer) = size.zip(answer).ok_or_else(too_large)?;
    Ok(message::request(size, answer))
}
