//! The frame parser against its own writers.

use crate::h2::frame::{Frame, Head, MIN_MAX_FRAME_SIZE, Scope, Split, split, write};

/// Takes `bytes` for what a peer sends: every frame in them is an error or says what, written
/// again, it says again.
///
/// # Panics
/// If it does not.
pub fn frames(mut bytes: &[u8]) {
    loop {
        let frame = match split(bytes, MIN_MAX_FRAME_SIZE) {
            Ok(Some(Split {
                head,
                payload,
                rest,
            })) => {
                assert_eq!(Head::SIZE + payload.len() + rest.len(), bytes.len());
                bytes = rest;
                (head, Frame::parse(head, payload))
            }
            Ok(None) => return,
            Err(error) => {
                let head = Head::read(bytes).expect("an error is of a head");
                assert!(matches!(error.scope, Scope::Connection) || head.stream != 0);
                return;
            }
        };
        match frame {
            (head, Ok(frame)) => again(head, &frame),
            (head, Err(error)) => match error.scope {
                Scope::Connection => return,
                Scope::Stream(stream) => assert!(stream == head.stream && stream != 0),
            },
        }
    }
}

/// Writes what a frame says and reads it again. Padding and flags without a meaning are gone then,
/// and what we never send is left out.
fn again(head: Head, frame: &Frame<'_>) {
    let mut out = Vec::new();
    match frame {
        Frame::Data {
            stream,
            data,
            flow,
            end_stream,
        } => {
            assert_eq!(*flow, head.length);
            write::data(&mut out, *stream, data, *end_stream);
        }
        Frame::Headers {
            stream,
            block,
            end_stream,
            ..
        } => write::headers(&mut out, *stream, *end_stream, MIN_MAX_FRAME_SIZE, |out| {
            out.extend_from_slice(block);
        }),
        Frame::Priority { stream, priority } => write::priority(&mut out, *stream, *priority),
        Frame::Reset { stream, code } => write::reset(&mut out, *stream, *code),
        Frame::Settings(settings) => {
            let known: Vec<_> = settings.clone().collect();
            assert!(known.len() <= settings.parameters());
            write::settings(&mut out, &known);
        }
        Frame::SettingsAck => write::settings_ack(&mut out),
        Frame::Ping { ack, opaque } => write::ping(&mut out, *ack, *opaque),
        Frame::GoAway {
            last_stream,
            code,
            debug,
        } => write::goaway(&mut out, *last_stream, *code, debug),
        Frame::WindowUpdate { stream, increment } => {
            write::window_update(&mut out, *stream, *increment);
        }
        Frame::PushPromise { .. } | Frame::Continuation { .. } | Frame::Unknown { .. } => return,
    }
    let Ok(Some(Split {
        head,
        payload,
        rest: [],
    })) = split(&out, MIN_MAX_FRAME_SIZE)
    else {
        panic!("one frame in, something else out: {frame:?}");
    };
    let said = Frame::parse(head, payload).expect("our own frame");
    assert!(same(&said, frame), "{said:?} is not {frame:?}");
}

/// Equal in all that writing keeps.
fn same(said: &Frame<'_>, meant: &Frame<'_>) -> bool {
    match (said, meant) {
        (
            Frame::Data {
                data, end_stream, ..
            },
            Frame::Data {
                data: meant,
                end_stream: end,
                ..
            },
        ) => data == meant && end_stream == end,
        (
            Frame::Headers {
                block, end_stream, ..
            },
            Frame::Headers {
                block: meant,
                end_stream: end,
                ..
            },
        ) => block == meant && end_stream == end,
        (Frame::Settings(settings), Frame::Settings(meant)) => settings.clone().eq(meant.clone()),
        // Debug data is cut to a sentence.
        (Frame::GoAway { debug, .. }, Frame::GoAway { debug: meant, .. }) => {
            meant.starts_with(debug)
        }
        (said, meant) => said == meant,
    }
}
