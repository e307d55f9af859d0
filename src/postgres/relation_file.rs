//! The names of the files that hold tables and indexes, and which of them a crash empties.

use std::collections::HashSet;
use std::ffi::OsStr;

/// One file of a relation: which relation, which of its forks, which part of the fork.
///
/// * The number is not 0.
///
/// The name is `<number>[_<fork>][.<segment>]`, decimal and without leading zeros; the first segment
/// has no number. Source: `parse_filename_for_nontemp_relation` in `storage/file/reinit.c`,
/// `forkNames` in `common/relpath.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelationFile {
    /// The number that names the relation in its directory (`pg_class.relfilenode`).
    pub number: u32,
    /// What the file holds of the relation.
    pub fork: Fork,
    /// Counted from 0: a fork is cut into files of `relseg_size` blocks.
    pub segment: u32,
}

/// The parts of a relation; all are made of pages with checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fork {
    /// The rows, or the index.
    Main,
    /// `_fsm`: where there is room.
    FreeSpace,
    /// `_vm`: which pages all can see.
    Visibility,
    /// `_init`: what an unlogged relation is reset to.
    Init,
}

impl RelationFile {
    /// Takes a file name apart; `None` if it is not that of a permanent or unlogged relation.
    pub fn parse(name: impl AsRef<OsStr>) -> Option<Self> {
        let name = name.as_ref().to_str()?;
        let (number, rest) = leading_number(name)?;
        let (fork, rest) = leading_fork(rest)?;
        let (segment, rest) = match rest.strip_prefix('.') {
            Some(rest) => leading_number(rest)?,
            None => (0, rest),
        };
        rest.is_empty().then_some(RelationFile { number, fork, segment })
    }

    /// The number of the file's first block within its fork, with segments of `relseg_size` blocks
    /// (`pg_control` has it); `None` where PostgreSQL would have no block.
    pub fn first_block(self, relseg_size: u32) -> Option<u32> {
        self.segment.checked_mul(relseg_size)
    }
}

/// The unlogged relations of one directory: those with an `_init` fork. PostgreSQL resets them at
/// the end of recovery, so that a backup needs no other fork of them.
#[derive(Clone, Debug, Default)]
pub struct Unlogged(HashSet<u32>);

impl Unlogged {
    /// Finds them among all names of a directory: read it to the end before the first file is copied.
    pub fn among<N: AsRef<OsStr>>(names: impl IntoIterator<Item = N>) -> Self {
        let files = names.into_iter().filter_map(RelationFile::parse);
        Self(files.filter(|file| file.fork == Fork::Init).map(|file| file.number).collect())
    }

    /// Whether recovery throws this file away.
    pub fn resets(&self, file: RelationFile) -> bool {
        file.fork != Fork::Init && self.0.contains(&file.number)
    }
}

/// Whether this names a file of a temporary relation: `t<backend>_<number>[_<fork>][.<segment>]`.
///
/// Source: `looks_like_temp_rel_name` in `storage/file/fd.c`.
pub fn is_temporary_relation(name: &OsStr) -> bool {
    let parse = || {
        let (backend, rest) = name.to_str()?.strip_prefix('t')?.split_once('_')?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (_, after) = leading_fork(&rest[digits..])?;
        let segment_is_fine = after.is_empty() || after.strip_prefix('.').is_some_and(is_number);
        Some(is_number(backend) && digits > 0 && segment_is_fine)
    };
    parse().unwrap_or(false)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A decimal number from 1 without leading zeros, and what follows it.
fn leading_number(text: &str) -> Option<(u32, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number = text[..digits].parse().ok().filter(|_| !text.starts_with('0'))?;
    Some((number, &text[digits..]))
}

/// The fork named by a leading `_<fork>`, the main one if there is none, and what follows it.
fn leading_fork(text: &str) -> Option<(Fork, &str)> {
    let Some(rest) = text.strip_prefix('_') else {
        return Some((Fork::Main, text));
    };
    let forks = [("fsm", Fork::FreeSpace), ("vm", Fork::Visibility), ("init", Fork::Init)];
    forks.into_iter().find_map(|(name, fork)| Some((fork, rest.strip_prefix(name)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_names_apart() {
        let file = |number, fork, segment| Some(RelationFile { number, fork, segment });
        assert_eq!(RelationFile::parse("16384"), file(16384, Fork::Main, 0));
        assert_eq!(RelationFile::parse("16384.12"), file(16384, Fork::Main, 12));
        assert_eq!(RelationFile::parse("16384_fsm"), file(16384, Fork::FreeSpace, 0));
        assert_eq!(RelationFile::parse("16384_vm.3"), file(16384, Fork::Visibility, 3));
        assert_eq!(RelationFile::parse("4294967295_init"), file(u32::MAX, Fork::Init, 0));
    }

    #[test]
    fn other_names_are_no_relations() {
        for name in [
            "",
            "0",
            "016384",
            "4294967296",
            "+1",
            "16384.",
            "16384.0",
            "16384.01",
            "16384_",
            "16384_main",
            "16384_fsmx",
            "16384.1_fsm",
            "16384 ",
            "t3_16384",
            "PG_VERSION",
            "pg_filenode.map",
            "pg_control",
            "pg_internal.init",
            "16384.1.2",
        ] {
            assert_eq!(RelationFile::parse(name), None, "{name}");
        }
    }

    #[test]
    fn temporary_relations_have_their_own_names() {
        for name in ["t3_16384", "t3_16384_fsm", "t3_16384_vm.1", "t0_1.12", "t12_16384_init"] {
            assert!(is_temporary_relation(OsStr::new(name)), "{name}");
        }
        for name in ["t_16384", "t3_", "t3", "3_16384", "t3_16384_", "t3_1.", "t3_1.x", "t3_1_main", "table", "tx_1"] {
            assert!(!is_temporary_relation(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn only_init_forks_of_unlogged_relations_are_kept() {
        let names = ["10", "10_init", "10.1", "10_fsm", "11", "11_fsm", "12_init", "PG_VERSION"];
        let unlogged = Unlogged::among(names);
        let reset: Vec<_> = names
            .into_iter()
            .filter(|name| RelationFile::parse(name).is_some_and(|file| unlogged.resets(file)))
            .collect();
        assert_eq!(reset, ["10", "10.1", "10_fsm"]);
    }

    #[test]
    fn blocks_are_counted_through_all_segments() {
        assert_eq!(RelationFile::parse("1").unwrap().first_block(131_072), Some(0));
        assert_eq!(RelationFile::parse("1.2").unwrap().first_block(131_072), Some(262_144));
        assert_eq!(RelationFile::parse("1.32768").unwrap().first_block(131_072), None);
    }

    proptest! {
        #[test]
        fn names_go_both_ways(number in 1u32.., fork in 0usize..4, segment: u32) {
            let (suffix, fork) =
                [("", Fork::Main), ("_fsm", Fork::FreeSpace), ("_vm", Fork::Visibility), ("_init", Fork::Init)][fork];
            let end = if segment == 0 { String::new() } else { format!(".{segment}") };
            let name = format!("{number}{suffix}{end}");
            prop_assert_eq!(RelationFile::parse(&name), Some(RelationFile { number, fork, segment }));
            let temporary = format!("t7_{name}");
            prop_assert!(is_temporary_relation(OsStr::new(&temporary)));
        }

        #[test]
        fn any_text_is_a_name_or_not(name in "t?[0-9]{0,3}[_.]?[0-9a-z]{0,4}[_.]?\\PC{0,4}") {
            let _ = (RelationFile::parse(&name), is_temporary_relation(OsStr::new(&name)));
        }
    }
}
