/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The settings of taps that source and target share. The target gets the
 * source's open taps, and a QEMU that opens a tap sets the length of its vnet
 * header to 10 and its offloads to none, while the source goes on with 12: it
 * then takes the end of the header for the beginning of the packet, and the
 * other way round. So the driver notes both before the target starts, sets
 * them again and again while the target builds its machine, once more when it
 * is built, and in undo(). What the guest negotiated is part of the device
 * state: the target sets it itself when it loads that.
 *
 * The notes are part of the plan, which the daemon keeps: if this process dies,
 * the next worker's undo() has them. No fd is kept: a tap without a persistent
 * interface would outlive its VM by that. There is no ioctl to read offloads;
 * they are what the interface shows as its features, asked in its own network
 * namespace. Where that is not allowed they stay unknown, and after a rollback
 * the kernel cuts the guest's packets into pieces: slower, nothing worse.
 */
#include "tap.h"

#include "cleanup.h"

#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

typedef Upgraded__V1__TargetPlan__Tap Tap;

/* Newer than some <linux/if_tun.h>. */
#define F_USO	      (0x20 | 0x40)
#define F_TUNNEL_GSO  0x80
#define F_TUNNEL_CSUM 0x100

static const struct {
	const char *feature;
	unsigned offload;
} features[] = {
	{ "tx-checksum-ip-generic", TUN_F_CSUM },
	{ "tx-tcp-segmentation", TUN_F_TSO4 },
	{ "tx-tcp6-segmentation", TUN_F_TSO6 },
	{ "tx-tcp-ecn-segmentation", TUN_F_TSO_ECN },
	{ "tx-udp-segmentation", F_USO },
	{ "tx-udp_tnl-segmentation", F_TUNNEL_GSO },
	{ "tx-udp_tnl-csum-segmentation", F_TUNNEL_CSUM },
};

static int ethtool(int sock, const char *name, void *command)
{
	struct ifreq ifr = { .ifr_data = command };

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	return ioctl(sock, SIOCETHTOOL, &ifr) < 0 ? -errno : 0;
}

/* A socket of the network namespace that the tap's interface is in. */
static int socket_beside(int tap)
{
	_cleanup_close_ int there = -EBADF, here = -EBADF;
	int sock;

	there = ioctl(tap, TUNGETDEVNETNS);
	here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (there < 0 || here < 0 || setns(there, CLONE_NEWNET) < 0)
		return -errno;
	sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		sock = -errno;
	/* To where it came from a process may always return that came by setns(). */
	if (setns(here, CLONE_NEWNET) < 0) {
		closep(&sock);
		return -errno;
	}
	return sock;
}

static int features_count(int sock, const char *name, uint32_t *ret_n)
{
	struct {
		struct ethtool_sset_info info;
		uint32_t n;
	} set = { .info = { .cmd = ETHTOOL_GSSET_INFO, .sset_mask = 1ULL << ETH_SS_FEATURES } };
	int r = ethtool(sock, name, &set);

	if (r < 0)
		return r;
	if (!set.info.sset_mask || !set.n || set.n > 1024)
		return -ENOTSUP;
	*ret_n = set.n;
	return 0;
}

static int read_offload(int tap, const char *name, uint32_t *ret_offload)
{
	_cleanup_free_ struct ethtool_gstrings *names = NULL;
	_cleanup_free_ struct ethtool_gfeatures *active = NULL;
	_cleanup_close_ int sock = socket_beside(tap);
	uint32_t n, offload = 0;
	int r;

	if (sock < 0)
		return sock;
	r = features_count(sock, name, &n);
	if (r < 0)
		return r;
	names = calloc(1, sizeof(*names) + (size_t)n * ETH_GSTRING_LEN);
	active = calloc(1, sizeof(*active) + (n + 31) / 32 * sizeof(active->features[0]));
	if (!names || !active)
		return -ENOMEM;
	names->cmd = ETHTOOL_GSTRINGS;
	names->string_set = ETH_SS_FEATURES;
	names->len = n;
	active->cmd = ETHTOOL_GFEATURES;
	active->size = (n + 31) / 32;
	r = ethtool(sock, name, names);
	if (r >= 0)
		r = ethtool(sock, name, active);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < n && i / 32 < active->size; i++)
		for (size_t j = 0; j < ARRAY_SIZE(features); j++)
			if (active->features[i / 32].active & 1u << i % 32 &&
			    !strncmp((char *)names->data + (size_t)i * ETH_GSTRING_LEN,
				     features[j].feature, ETH_GSTRING_LEN))
				offload |= features[j].offload;
	*ret_offload = offload;
	return 0;
}

/* 0; -ENOTTY: it is no tap with a header (any more). */
static int read_header(int tap, char name[IFNAMSIZ], int *ret_header)
{
	struct ifreq ifr = { 0 };

	if (ioctl(tap, TUNGETIFF, &ifr) < 0 || !(ifr.ifr_flags & IFF_VNET_HDR) ||
	    ioctl(tap, TUNGETVNETHDRSZ, ret_header) < 0)
		return -ENOTTY;
	memcpy(name, ifr.ifr_name, IFNAMSIZ);
	name[IFNAMSIZ - 1] = '\0';
	return 0;
}

static int note(int source_pidfd, int number, Upgraded__V1__TargetPlan *plan, struct error *err)
{
	_cleanup_close_ int fd = (int)syscall(SYS_pidfd_getfd, source_pidfd, number, 0);
	char name[IFNAMSIZ];
	int header;
	Tap *tap;

	if (fd < 0)
		return error_errno(err, -errno, "cannot look at the source's tap (fd %d)", number);
	if (read_header(fd, name, &header) < 0)
		return 0;
	tap = malloc(sizeof(*tap));
	if (!tap)
		return -ENOMEM;
	upgraded__v1__target_plan__tap__init(tap);
	tap->fd = number;
	tap->header = header;
	tap->offload_known = read_offload(fd, name, &tap->offload) >= 0;
	tap->name = strdup(name);
	plan->taps[plan->n_taps++] = tap;
	return tap->name ? 0 : -ENOMEM;
}

int taps_note(int source_pidfd, const struct plan_fd *fds, size_t n_fds,
	      Upgraded__V1__TargetPlan *plan, struct error *err)
{
	int r = 0;

	taps_free(plan);
	plan->taps = calloc(n_fds + 1, sizeof(*plan->taps));
	if (!plan->taps)
		return -ENOMEM;
	for (size_t i = 0; i < n_fds && r >= 0; i++)
		if (fds[i].tap)
			r = note(source_pidfd, fds[i].source, plan, err);
	if (r < 0)
		taps_free(plan);
	return r;
}

static int restore(int source_pidfd, const Tap *tap, bool offloads)
{
	_cleanup_close_ int fd = (int)syscall(SYS_pidfd_getfd, source_pidfd, tap->fd, 0);
	char name[IFNAMSIZ];
	uint32_t offload;
	int header;

	/* The source is dying, or the card was unplugged meanwhile. */
	if (fd < 0)
		return errno == EBADF || errno == ESRCH ? 0 : -errno;
	if (read_header(fd, name, &header) < 0 || strcmp(name, tap->name))
		return 0;
	if (header != tap->header && ioctl(fd, TUNSETVNETHDRSZ, &tap->header) < 0)
		return -errno;
	if (!offloads || !tap->offload_known ||
	    (read_offload(fd, name, &offload) >= 0 && offload == tap->offload))
		return 0;
	return ioctl(fd, TUNSETOFFLOAD, (unsigned long)tap->offload) < 0 ? -errno : 0;
}

static int restore_all(int source_pidfd, const Upgraded__V1__TargetPlan *plan, bool offloads,
		       struct error *err)
{
	int first = 0;

	for (size_t i = 0; i < plan->n_taps; i++) {
		int r = restore(source_pidfd, plan->taps[i], offloads);

		if (r < 0 && !first)
			first = error_errno(err, r, "cannot give %s its settings back",
					    plan->taps[i]->name);
	}
	return first;
}

int taps_restore_headers(int source_pidfd, const Upgraded__V1__TargetPlan *plan, struct error *err)
{
	return restore_all(source_pidfd, plan, false, err);
}

int taps_restore(int source_pidfd, const Upgraded__V1__TargetPlan *plan, struct error *err)
{
	return restore_all(source_pidfd, plan, true, err);
}

void taps_free(Upgraded__V1__TargetPlan *plan)
{
	for (size_t i = 0; i < plan->n_taps; i++) {
		free(plan->taps[i]->name);
		free(plan->taps[i]);
	}
	free(plan->taps);
	plan->taps = NULL;
	plan->n_taps = 0;
}
