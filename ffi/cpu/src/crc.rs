//! CRC32C of 64-bit words, the route table's hash step: the CPU's instruction, or a table with the same result.

/// Continues the CRC32C `seed` over the eight little-endian bytes of `value`. No inversion before or after, as the x86
/// instruction has it; chain the result as the next seed.
#[inline(always)]
#[must_use]
pub fn crc32c_u64(seed: u32, value: u64) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        return instruction(seed, value);
    }
    portable(seed, value)
}

/// The `crc32` instruction, written as assembly because a `#[target_feature]` function could not be inlined into its callers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the instruction leaves the upper half of its destination zero")]
fn instruction(seed: u32, value: u64) -> u32 {
    let mut crc = u64::from(seed);
    // SAFETY: the only caller has checked for SSE4.2; the instruction touches nothing but its destination register.
    unsafe {
        std::arch::asm!("crc32 {crc}, {value}", crc = inout(reg) crc, value = in(reg) value,
            options(pure, nomem, nostack, preserves_flags));
    }
    crc as u32
}

fn portable(seed: u32, value: u64) -> u32 {
    value.to_le_bytes().iter().fold(seed, |crc, byte| TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8))
}

/// The Castagnoli polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;

const TABLE: [u32; 256] = {
    let mut table = [0_u32; 256];
    let mut byte = 0_u32;
    while byte < 256 {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rfc_3720_vectors() {
        // RFC 3720 B.4: 32 bytes of zeros and of ones, with the inversions that the standard puts around the register.
        for (word, expected) in [(0, 0x8A91_36AA_u32), (u64::MAX, 0x62A8_AB43)] {
            assert_eq!(!(0..4).fold(!0, |crc, _| portable(crc, word)), expected);
            assert_eq!(!(0..4).fold(!0, |crc, _| crc32c_u64(crc, word)), expected);
        }
    }

    proptest! {
        #[test]
        fn the_instruction_and_the_table_agree(seed: u32, value: u64) {
            prop_assert_eq!(crc32c_u64(seed, value), portable(seed, value));
        }
    }
}
