/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a worker gives up once nothing is left to be executed. To start a target with
 * the identity of any VMM takes all that root has, and whatever is taken from a process
 * before that is taken from the target. But from then on a worker only talks to two
 * monitors, moves bytes and fds, and kills; and the VMMs that it talks to run guests
 * that may have broken out. So it keeps the capabilities that these things take, and
 * the system calls with which a program gets hold of more than its own process are gone.
 * spawn_work() still takes a VM's user's identity: what is denied here no VM's helper needs.
 *
 * A denied call fails with EPERM rather than end the process: a worker that is killed in
 * the middle costs an upgrade.
 */
#include "confine.h"

#include "cleanup.h"

#include <errno.h>
#include <linux/capability.h>
#include <seccomp.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const unsigned kept[] = {
	CAP_KILL,	  /* pidfd_send_signal() to VMMs of other users */
	CAP_SYS_PTRACE,	  /* pidfd_getfd(), /proc/PID of a VMM */
	CAP_DAC_OVERRIDE, /* monitors and work directories of other users */
	CAP_DAC_READ_SEARCH,
	CAP_CHOWN, /* sockets are made as the VM's user's */
	CAP_FOWNER,
	CAP_NET_ADMIN, /* settings of a tap, which a rollback puts back */
	/* spawn_work() takes the identity of a VMM: its user, namespaces, root, limits. */
	CAP_SETUID,
	CAP_SETGID,
	CAP_SETPCAP,
	CAP_SYS_ADMIN,
	CAP_SYS_CHROOT,
	CAP_SYS_RESOURCE,
	CAP_SYS_NICE,
};

static const int denied[] = {
	/* another program */
	SCMP_SYS(execve),
	SCMP_SYS(execveat),
	SCMP_SYS(uselib),
	/* another process's memory */
	SCMP_SYS(ptrace),
	SCMP_SYS(process_vm_readv),
	SCMP_SYS(process_vm_writev),
	SCMP_SYS(userfaultfd),
	SCMP_SYS(kcmp),
	/* the kernel */
	SCMP_SYS(init_module),
	SCMP_SYS(finit_module),
	SCMP_SYS(delete_module),
	SCMP_SYS(kexec_load),
	SCMP_SYS(kexec_file_load),
	SCMP_SYS(bpf),
	SCMP_SYS(perf_event_open),
	SCMP_SYS(syslog),
	SCMP_SYS(iopl),
	SCMP_SYS(ioperm),
	SCMP_SYS(io_uring_setup),
	/* the host */
	SCMP_SYS(reboot),
	SCMP_SYS(swapon),
	SCMP_SYS(swapoff),
	SCMP_SYS(acct),
	SCMP_SYS(settimeofday),
	SCMP_SYS(clock_settime),
	SCMP_SYS(clock_adjtime),
	SCMP_SYS(adjtimex),
	SCMP_SYS(sethostname),
	SCMP_SYS(setdomainname),
	SCMP_SYS(quotactl),
	SCMP_SYS(vhangup),
	/* file systems */
	SCMP_SYS(mount),
	SCMP_SYS(umount2),
	SCMP_SYS(pivot_root),
	SCMP_SYS(fsopen),
	SCMP_SYS(fsmount),
	SCMP_SYS(fsconfig),
	SCMP_SYS(fspick),
	SCMP_SYS(move_mount),
	SCMP_SYS(open_tree),
	SCMP_SYS(mount_setattr),
	SCMP_SYS(open_by_handle_at),
	SCMP_SYS(name_to_handle_at),
	SCMP_SYS(mknod),
	SCMP_SYS(mknodat),
	/* keys, new namespaces */
	SCMP_SYS(add_key),
	SCMP_SYS(request_key),
	SCMP_SYS(keyctl),
	SCMP_SYS(unshare),
};

static bool is_kept(unsigned cap)
{
	for (size_t i = 0; i < ARRAY_SIZE(kept); i++)
		if (kept[i] == cap)
			return true;
	return false;
}

static int drop_capabilities(struct error *err)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data) < 0)
		return error_errno(err, -errno, "cannot read the worker's capabilities");
	for (unsigned cap = 0; cap < 64 && prctl(PR_CAPBSET_READ, cap) >= 0; cap++) {
		if (is_kept(cap))
			continue;
		/* Without CAP_SETPCAP there are none that could come back. */
		if (prctl(PR_CAPBSET_DROP, cap) < 0 && errno != EPERM)
			return error_errno(err, -errno, "cannot drop capability %u", cap);
		data[cap / 32].effective &= ~(1U << cap % 32);
		data[cap / 32].permitted &= ~(1U << cap % 32);
		data[cap / 32].inheritable &= ~(1U << cap % 32);
	}
	if (syscall(SYS_capset, &header, data) < 0)
		return error_errno(err, -errno, "cannot drop the worker's capabilities");
	return 0;
}

static void release(scmp_filter_ctx *filter)
{
	seccomp_release(*filter);
}

static int deny_calls(struct error *err)
{
	__attribute__((cleanup(release))) scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
	int r;

	if (!filter)
		return -ENOMEM;
	for (size_t i = 0; i < ARRAY_SIZE(denied); i++) {
		/* Below zero: one that this architecture does not have. */
		r = denied[i] < 0 ? 0
				  : seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), denied[i], 0);
		if (r < 0)
			return error_errno(err, r, "cannot deny system call %d", denied[i]);
	}
	r = seccomp_load(filter);
	return r < 0 ? error_errno(err, r, "cannot confine the worker's system calls") : 0;
}

int confine(struct error *err)
{
	static bool done;
	int r;

	if (done)
		return 0;
	r = drop_capabilities(err);
	if (r >= 0)
		r = deny_calls(err);
	done = r >= 0;
	return r;
}
