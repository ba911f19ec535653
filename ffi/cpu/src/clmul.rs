//! Carry-less multiplication of 64-bit words: products of polynomials over two elements, which linear hashes are made of.

/// Proof that this CPU has the PCLMULQDQ instruction.
#[derive(Debug, Clone, Copy)]
pub struct Clmul(());

impl Clmul {
    /// The instruction, where the CPU has it.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("pclmulqdq") {
            return Some(Self(()));
        }
        None
    }

    /// The lower 64 bits of the carry-less product of `a` and `b`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    #[must_use]
    pub fn multiply(self, a: u64, b: u64) -> u64 {
        let product: u64;
        // Written as assembly because a `#[target_feature]` function could not be inlined into its callers.
        // SAFETY: a `Clmul` exists only where the CPU has the instruction; nothing but the named registers is touched.
        unsafe {
            std::arch::asm!("movq {x}, {a}", "movq {y}, {b}", "pclmulqdq {x}, {y}, 0", "movq {product}, {x}",
                x = out(xmm_reg) _, y = out(xmm_reg) _, a = in(reg) a, b = in(reg) b, product = lateout(reg) product,
                options(pure, nomem, nostack, preserves_flags));
        }
        product
    }

    /// The same without the instruction.
    #[cfg(not(target_arch = "x86_64"))]
    #[must_use]
    pub fn multiply(self, a: u64, b: u64) -> u64 {
        portable(a, b)
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn portable(a: u64, b: u64) -> u64 {
    (0..64).filter(|bit| b >> bit & 1 == 1).fold(0, |product, bit| product ^ a << bit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_instruction_multiplies(a: u64, b: u64) {
            if let Some(clmul) = Clmul::detect() {
                prop_assert_eq!(clmul.multiply(a, b), portable(a, b));
            }
        }
    }
}
