//! What only sysfs tells of a device. All of it is for people, but for one fact: whether the device is Soft-RoCE, whose
//! revocation behaviour was measured.

use std::fs;
use std::path::PathBuf;

/// Vendor number that Soft-RoCE reports.
const VENDOR_SOFT_ROCE: u32 = 0xff_ffff;
/// Vendor number that Soft-iWARP reports.
const VENDOR_SOFT_IWARP: u32 = 0x62_6d74;

/// The kernel module of Soft-RoCE.
pub(super) const SOFT_ROCE: &str = "rdma_rxe";
/// The kernel module of Soft-iWARP.
pub(super) const SOFT_IWARP: &str = "siw";

/// A device's folder in sysfs, if it has one.
pub(super) struct Sysfs(pub(super) Option<PathBuf>);

impl Sysfs {
    /// The kernel driver, or `unknown`.
    ///
    /// A device on a bus has a link to its driver. Soft-RoCE has to be recognised before: up to about Linux 5.10 it
    /// hangs on the device under its network device, whose driver the link names then. It is the only driver with an
    /// attribute `parent` (its network device). Both software devices have vendor numbers of their own. The description
    /// of the node is no help, since a daemon of rdma-core overwrites it.
    pub(super) fn driver(&self, vendor_id: Option<u32>) -> String {
        if self.text("parent").is_some() {
            return SOFT_ROCE.into();
        }
        if let Some(link) = self
            .path("device/driver")
            .and_then(|path| fs::read_link(path).ok())
            && let Some(name) = link.file_name()
        {
            return name.to_string_lossy().into_owned();
        }
        match vendor_id {
            Some(VENDOR_SOFT_ROCE) => SOFT_ROCE,
            Some(VENDOR_SOFT_IWARP) => SOFT_IWARP,
            _ => "unknown",
        }
        .into()
    }

    /// Type of a GID, such as `RoCE v2`.
    pub(super) fn gid_type(&self, port: u8, index: u32) -> Option<String> {
        self.text(&format!("ports/{port}/gid_attrs/types/{index}"))
    }

    /// The network device that a GID's address belongs to.
    pub(super) fn netdev(&self, port: u8, index: u32) -> Option<String> {
        self.text(&format!("ports/{port}/gid_attrs/ndevs/{index}"))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.0.as_ref()?.join(name))
    }

    fn text(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(name)?).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_devices_are_known_by_their_vendor_numbers() {
        let nowhere = Sysfs(None);
        assert_eq!(nowhere.driver(Some(VENDOR_SOFT_ROCE)), SOFT_ROCE);
        assert_eq!(nowhere.driver(Some(VENDOR_SOFT_IWARP)), SOFT_IWARP);
        assert_eq!(nowhere.driver(Some(0x2c9)), "unknown");
        assert_eq!(nowhere.driver(None), "unknown");
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes files and links")]
    fn parent_goes_before_a_link_to_the_driver_and_that_before_the_vendor() {
        let dir = std::env::temp_dir().join(format!("mu-sysfs-{}", std::process::id()));
        fs::create_dir_all(dir.join("device")).unwrap();
        fs::create_dir_all(dir.join("ports/1/gid_attrs/types")).unwrap();
        fs::write(dir.join("ports/1/gid_attrs/types/3"), "RoCE v2\n").unwrap();
        let sysfs = Sysfs(Some(dir.clone()));
        assert_eq!(sysfs.gid_type(1, 3).as_deref(), Some("RoCE v2"));
        assert_eq!(sysfs.gid_type(1, 4), None);
        std::os::unix::fs::symlink("../../bus/pci/drivers/mlx5_core", dir.join("device/driver"))
            .unwrap();
        assert_eq!(sysfs.driver(Some(VENDOR_SOFT_ROCE)), "mlx5_core");
        // As old kernels show Soft-RoCE on top of such a device.
        fs::write(dir.join("parent"), "eth0\n").unwrap();
        assert_eq!(sysfs.driver(Some(VENDOR_SOFT_ROCE)), SOFT_ROCE);
        fs::remove_dir_all(dir).unwrap();
    }
}
