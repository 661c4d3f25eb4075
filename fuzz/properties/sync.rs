//! What must hold of the reader of the sync channel's messages, whatever the bytes:
//! shared by the fuzzer's target and by a bounded run among the ordinary tests.

use crate::message::{
    BATCH, Frame, LARGEST, News, PROTOCOL, Unreadable, read_frame, read_hello, read_reply,
    write_frame, write_hello, write_reply,
};

/// What every greeting begins with.
const MAGIC: &[u8] = b"lb-s";

/// Reads `data` as some message, the first byte says which, and panics if that does not
/// end as it must.
pub(crate) fn holds(data: &[u8]) {
    let Some((&which, data)) = data.split_first() else {
        return;
    };
    match which % 3 {
        0 => greeting(data),
        1 => frame(data),
        _ => reply(data),
    }
}

/// What was read and is written again is the same, and no longer than it was: numbers
/// may have come in more bytes than they need.
fn rewritten(data: &[u8], written: &[u8]) {
    assert!(written.len() <= data.len());
}

fn greeting(data: &[u8]) {
    match read_hello(data) {
        Ok(hello) => {
            let written = write_hello(&hello);
            rewritten(data, &written);
            assert_eq!(read_hello(&written), Ok(hello.clone()));
            for name in [&hello.node, &hello.version] {
                assert!(!name.is_empty() && !name.chars().any(char::is_control));
            }
        }
        Err(Unreadable::Protocol(other)) => {
            assert_eq!(data[..MAGIC.len()], *MAGIC);
            assert_eq!(data[MAGIC.len()..][..2], other.to_be_bytes());
            assert_ne!(other, PROTOCOL);
        }
        Err(Unreadable::Truncated | Unreadable::Garbage) => {}
    }
}

fn frame(data: &[u8]) {
    match read_frame(data) {
        Ok(frame) => {
            let written = write_frame(&frame);
            rewritten(data, &written);
            accepted(&frame, &written);
            assert_eq!(read_frame(&written), Ok(frame));
        }
        Err(why) => assert!(!matches!(why, Unreadable::Protocol(_))),
    }
}

/// It can be sent, and be applied by the data path's own code.
fn accepted(frame: &Frame, written: &[u8]) {
    let News::Flows(flows) = &frame.news else {
        return;
    };
    assert!(flows.len() <= BATCH && written.len() <= LARGEST);
    for record in &flows.there {
        assert!((1..=4).contains(&record.forward()));
        // Established, or of TCP and answered where answers are seen; and not ended.
        let half_open = record.state & (1 | 32) != 0 && record.is_tcp();
        assert!(record.state & 16 != 0 || half_open);
        assert_ne!(record.state & 6, 6);
    }
}

fn reply(data: &[u8]) {
    match read_reply(data) {
        Ok(reply) => {
            let written = write_reply(reply);
            rewritten(data, &written);
            assert_eq!(read_reply(&written), Ok(reply));
        }
        Err(why) => assert!(!matches!(why, Unreadable::Protocol(_))),
    }
}
