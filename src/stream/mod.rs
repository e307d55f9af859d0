//! Bytes in flight: digest, compression, the frame that carries a header, resumable reading.
//!
//! This layer moves bytes and measures them. It knows no keys, no settings and no stores, and it
//! does not know what the header of an object says: that is `repo::wal_object`.

pub mod cut;
pub mod digest;
pub mod frame;
pub mod growing;
pub mod pack;
pub mod packer;
pub mod part_reader;
pub mod part_writer;
pub mod quick_digest;
pub mod resume;
pub mod tar_header;
pub mod unpack;

pub use digest::{Receipt, Sha256, Sha256Hasher};
pub use growing::{Growing, Grown};
pub use pack::{Packed, pack};
pub use packer::Packer;
pub use part_reader::{PartReader, WantedExtent};
pub use part_writer::{PackedExtent, PartWriter};
pub use resume::{RangeSource, Resumable};
pub use unpack::{UnpackError, Unpacker};
