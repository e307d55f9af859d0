//! The skippable frame that stands before the compressed bytes and carries the object's header.
//!
//! zstd decoders pass over skippable frames, so `zstd -d` gives the plain bytes and never sees the
//! header. Layout, little endian:
//!
//! ```text
//!  0  u32  0x184D2A50: a zstd skippable frame (RFC 8878, 3.1.2)
//!  4  u32  n: how many bytes follow in this frame
//!  8  [8]  "pgarkWAL"
//! 16  u32  CRC-32C of the n - 12 bytes that follow
//! 20  ...  the header: JSON in UTF-8, filled up with blanks
//! ```

/// The tag of a frame that holds the header of a WAL object.
pub const WAL_TAG: [u8; 8] = *b"pgarkWAL";

const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;
/// Bytes of the frame before its payload.
const PREFIX: usize = 20;
/// What no header of ours comes near; a larger claim is damage or an attack.
const LARGEST_PAYLOAD: usize = 64 << 10;
/// Room that is left for the header before its content is known. A larger header still fits: then
/// the bytes behind it are moved once.
pub const ROOM: usize = 1 << 10;

/// Bytes that do not begin with an intact header frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes begin differently.
    #[error("the object does not begin with the header of a WAL object")]
    NotAFrame,
    /// The checksum does not fit the header.
    #[error("the checksum of the object's header is wrong")]
    Damaged,
    /// The header does not fit the limit.
    #[error("a header of {0} bytes is too large")]
    TooLarge(usize),
}

/// Writes the frame for `payload` to the front of `object`, whose first `room` bytes were left free.
/// The frame fills exactly `room` bytes where it fits.
pub fn write_in_front(object: &mut Vec<u8>, room: usize, payload: &[u8]) -> Result<(), FrameError> {
    if payload.len() > LARGEST_PAYLOAD {
        return Err(FrameError::TooLarge(payload.len()));
    }
    let mut padded = payload.to_vec();
    padded.resize(padded.len().max(room.saturating_sub(PREFIX)), b' ');
    let mut frame = Vec::with_capacity(PREFIX + padded.len());
    frame.extend(SKIPPABLE_MAGIC.to_le_bytes());
    frame.extend(((PREFIX - 8 + padded.len()) as u32).to_le_bytes());
    frame.extend(WAL_TAG);
    frame.extend(crc32c::crc32c(&padded).to_le_bytes());
    frame.extend(padded);
    object.splice(..room, frame);
    Ok(())
}

/// A header frame found at the front of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The header, with its padding.
    pub payload: &'a [u8],
    /// How many bytes the whole frame takes.
    pub length: usize,
}

/// Reads the frame at the front of `bytes`; `None` when more bytes are needed to tell.
pub fn read(bytes: &[u8]) -> Result<Option<Frame<'_>>, FrameError> {
    let mut expected = [0; 16];
    expected[..4].copy_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    expected[8..].copy_from_slice(&WAL_TAG);
    let fixed = |at: usize| !(4..8).contains(&at);
    if bytes.iter().zip(&expected).enumerate().any(|(at, (got, want))| fixed(at) && got != want) {
        return Err(FrameError::NotAFrame);
    }
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let claimed = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]) as usize;
    let length = claimed.saturating_add(8);
    if !(PREFIX..=PREFIX + LARGEST_PAYLOAD).contains(&length) {
        return Err(FrameError::Damaged);
    }
    let Some(payload) = bytes.get(PREFIX..length) else {
        return Ok(None);
    };
    if crc32c::crc32c(payload) != u32::from_le_bytes([prefix[16], prefix[17], prefix[18], prefix[19]]) {
        return Err(FrameError::Damaged);
    }
    Ok(Some(Frame { payload, length }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(room: usize, payload: &[u8], rest: &[u8]) -> Vec<u8> {
        let mut object = vec![0; room];
        object.extend(rest);
        write_in_front(&mut object, room, payload).unwrap();
        object
    }

    #[test]
    fn reader_and_writer_have_the_same_limit() {
        let largest = framed(ROOM, &vec![b' '; LARGEST_PAYLOAD], b"");
        assert_eq!(read(&largest).unwrap().map(|frame| frame.length), Some(PREFIX + LARGEST_PAYLOAD));
        let mut larger = largest.clone();
        larger[4..8].copy_from_slice(&((PREFIX - 8 + LARGEST_PAYLOAD + 1) as u32).to_le_bytes());
        larger.push(b' ');
        assert_eq!(read(&larger), Err(FrameError::Damaged));
        assert!(write_in_front(&mut vec![0; ROOM], ROOM, &vec![b' '; LARGEST_PAYLOAD + 1]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(room in 20usize..200, payload in "[a-z]{0,300}", rest in proptest::collection::vec(any::<u8>(), 0..50)) {
            let object = framed(room, payload.as_bytes(), &rest);
            let frame = read(&object).unwrap().unwrap();
            prop_assert_eq!(std::str::from_utf8(frame.payload).unwrap().trim_end(), &payload);
            prop_assert_eq!(&object[frame.length..], &rest[..]);
            for cut in 0..frame.length {
                prop_assert_eq!(read(&object[..cut]).unwrap(), None);
            }
        }

        #[test]
        fn a_flipped_bit_never_gives_another_header(at in 0usize..100, bit in 0u8..8) {
            let mut object = framed(100, b"{\"a\":1}", b"rest");
            object[at] ^= 1 << bit;
            if let Ok(Some(frame)) = read(&object) {
                prop_assert_eq!(std::str::from_utf8(frame.payload).unwrap().trim_end(), "{\"a\":1}");
            }
        }

        #[test]
        fn any_bytes_are_a_frame_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(!matches!(read(&bytes), Ok(Some(_))));
        }
    }

    #[test]
    fn zstd_passes_over_the_frame() {
        let compressed = zstd::encode_all(&b"plain bytes"[..], 1).unwrap();
        let object = framed(ROOM, b"{}", &compressed);
        assert_eq!(object.len(), ROOM + compressed.len());
        assert_eq!(zstd::decode_all(&object[..]).unwrap(), b"plain bytes");
    }
}
