/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Devices, objects, sound. Most describe the guest and are kept. What a device
 * is bound to on the host decides: a host device or a helper process that
 * serves one VMM at a time cannot be opened by the target while the source has
 * it. Whether a device's state can be carried at all is not asked here: QEMU
 * says so itself when the target is probed.
 */
#include "argv_planner.h"

#include "cleanup.h"

#include <string.h>

struct rule {
	const char *pattern;
	bool blocks;
	const char *text, *remedy;
};

static const struct rule device_rules[] = {
	{ "vfio-*", true, "A passed-through device stays bound to the source",
	  "Unplug it before the upgrade (device_del)" },
	{ "usb-host", true, "A host USB device stays bound to the source",
	  "Unplug it before the upgrade (device_del)" },
	{ "vhost-user-*", true, "Its back end is a process that serves one VMM at a time",
	  "Unplug it before the upgrade; for vhost-user-blk use virtio-blk" },
	{ "virtio-*-vhost-user*", true, "Its back end is a process that serves one VMM at a time",
	  "Unplug it before the upgrade" },
	{ "vhost-vsock-*", true, "The guest's CID is taken in the kernel by the source",
	  "Unplug it before the upgrade (device_del)" },
	{ "vhost-scsi-*", true, "The target port is taken in the kernel by the source",
	  "Use virtio-scsi" },
	{ "vhost-vdpa-*", true, "The vDPA device serves one process at a time",
	  "Unplug it before the upgrade" },
	{ "ivshmem-doorbell", true, "The peers' server gives every process a new identity",
	  "Unplug it before the upgrade" },
	{ "virtio-input-host*", true, "The source holds the input device for itself",
	  "Unplug it before the upgrade" },
	{ "u2f-passthru", true, "The source holds the key for itself", "Unplug it before the upgrade" },
	{ "ccid-card-passthru", true, "The card's connection is the source's",
	  "Unplug it before the upgrade" },
	{ "x-*-proxy-dev", true, "The device lives in another process", "Start the guest without it" },
	{ "virtio-gpu-gl*", true, "The 3D state of the host's GPU cannot be carried",
	  "Use virtio-gpu-pci" },
	{ "virtio-vga-gl", true, "The 3D state of the host's GPU cannot be carried",
	  "Use virtio-vga" },
	{ "virtio-*-rutabaga*", true, "The 3D state of the host's GPU cannot be carried",
	  "Use virtio-gpu-pci" },
	{ "virtio-9p-*", false, "It cannot be carried while the guest has it mounted",
	  "Unmount it in the guest before the upgrade" },
};

static const struct rule object_rules[] = {
	{ "colo-compare", true, "COLO ties the guest to another host", "End COLO first" },
	{ "filter-dump", true, "The target would empty the capture file",
	  "Remove it before the upgrade (object-del)" },
	{ "filter-mirror", true, "Its chardev is a connection of the source", "Remove it first" },
	{ "filter-redirector", true, "Its chardev is a connection of the source", "Remove it first" },
	{ "filter-replay", true, "A replay cannot be carried", "End the replay first" },
	{ "input-linux", true, "The source holds the input device for itself",
	  "Remove it before the upgrade (object-del)" },
	{ "input-barrier", true, "Its connection is the source's", "Remove it first" },
	{ "dbus-vmstate", true, "Helpers on the bus serve one QEMU at a time", "Remove it first" },
	{ "sev-guest", true, "Memory of a confidential guest cannot be carried",
	  "Restart the guest when it may be: it runs in the new QEMU then" },
	{ "sev-snp-guest", true, "Memory of a confidential guest cannot be carried",
	  "Restart the guest when it may be: it runs in the new QEMU then" },
	{ "tdx-guest", true, "Memory of a confidential guest cannot be carried",
	  "Restart the guest when it may be: it runs in the new QEMU then" },
	{ "cryptodev-vhost-user", true, "Its back end serves one VMM at a time", "Remove it first" },
	{ "vhost-user-*", true, "It serves a connection of the source", "Remove it first" },
	{ "x-remote-object", true, "The device lives in another process", "Start without it" },
	{ "x-vfio-user-server", true, "It serves a connection of the source", "Start without it" },
	{ "can-host-socketcan", false, "CAN frames during the upgrade can be seen twice", NULL },
	{ "qtest", true, "A test harness drives this process", "Start without it" },
};

static const char *const plain_objects[] = {
	"iothread", "main-loop", "thread-context", "throttle-group", "secret", "secret_keyring",
	"tls-creds-*", "tls-cipher-suites", "authz-*", "rng-*", "filter-buffer", "filter-rewriter",
	"cryptodev-backend*", "can-bus", "pr-manager-helper", "iommufd", "igvm-cfg", "acpi-*",
	"virtio-mem*", NULL,
};

/* Says whether a rule fits. */
static bool apply(struct planner *p, const char *code, const char *subject, const char *name,
		  const struct rule *rules, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const struct rule *r = &rules[i];
		const char *const pattern[] = { r->pattern, NULL };

		if (!plan_matches(name, pattern))
			continue;
		if (r->blocks)
			plan_block(p, code, subject, r->remedy, "%s: %s", name, r->text);
		else
			plan_warn(p, code, subject, r->remedy, "%s: %s", name, r->text);
		return true;
	}
	return false;
}

void argv_device(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, "driver");
	const char *driver = opts ? opts_get(opts, "driver") : NULL;

	if (!opts)
		return;
	plan_keep(p, o, arg);
	if (driver)
		apply(p, "argv.device", opts_get(opts, "id") ?: arg, driver, device_rules,
		      ARRAY_SIZE(device_rules));
}

void argv_object(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = NULL;
	const char *type, *id;

	if (carried_is(arg)) /* read already, written anew at the end */
		return;
	opts = plan_parse(p, o, arg, "qom-type");
	type = opts ? opts_get(opts, "qom-type") : NULL;
	if (!opts)
		return;
	if (type && !strncmp(type, "memory-backend-", 15)) {
		memory_object(p, o, opts, arg);
		return;
	}
	plan_keep(p, o, arg);
	if (!type)
		return;
	id = opts_get(opts, "id") ?: arg;
	if (!strcmp(type, "iommufd") && opts_get(opts, "fd"))
		plan_block(p, "argv.object", id, "Unplug the passed-through devices",
			   "iommufd: The descriptor is tied to the source's devices");
	else if (!strncmp(type, "secret", 6) && opts_get(opts, "file"))
		plan_note(p, "argv.object", id, "The target reads %s again",
			  opts_get(opts, "file"));
	else if (!apply(p, "argv.object", id, type, object_rules, ARRAY_SIZE(object_rules)) &&
		 !plan_matches(type, plain_objects))
		plan_warn(p, "argv.object", id, NULL,
			  "Objects of the kind %s are kept as they are written", type);
}

void argv_usbdevice(struct planner *p, const struct argv_option *o, const char *arg)
{
	static const char *const plain[] = { "tablet", "mouse", "keyboard", "wacom-tablet",
					     "ccid", "audio", NULL };

	plan_keep(p, o, arg);
	if (!plan_word_in(arg, plain))
		plan_block(p, "argv.device", arg, "Unplug it before the upgrade",
			   "-usbdevice %s is bound to the source", arg);
}

void argv_audiodev(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, "driver");
	const char *driver = opts ? opts_get(opts, "driver") : NULL;

	if (!opts)
		return;
	plan_keep(p, o, arg);
	if (!driver || !strcmp(driver, "none"))
		return;
	if (!strcmp(driver, "wav"))
		plan_block(p, "argv.audio", arg, "Start the guest without it",
			   "The target would empty the sound file");
	else
		plan_warn(p, "argv.audio", arg, NULL, "Sound stops for a moment and starts again");
}
