//! mu as a contestant: to be written when its public API is there. README.md, "Adding a contestant", says how.

compile_error!(
    "the contestant mu is not written yet: implement crate::core::Core for crate::mu::Mu"
);
