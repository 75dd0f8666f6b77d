/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Brings up the guest's network interface: the first Ethernet one gets the address of load.net.
 *
 * Called by main() before the network part starts. It owns nothing that outlives the call.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"
#include "now.h"

#define DEADLINE_MS 5000

static int find_ethernet(char *ret_name)
{
	DIR *dir = opendir("/sys/class/net");
	struct dirent *e;
	int r = -ENODEV;

	if (!dir)
		return -errno;
	while (r < 0 && (e = readdir(dir))) {
		char path[300];
		FILE *f;
		int type = 0;

		if (e->d_name[0] == '.' || !strcmp(e->d_name, "lo") ||
		    strlen(e->d_name) >= IFNAMSIZ)
			continue;
		snprintf(path, sizeof(path), "/sys/class/net/%s/type", e->d_name);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (fscanf(f, "%d", &type) == 1 && type == ARPHRD_ETHER) {
			strcpy(ret_name, e->d_name);
			r = 0;
		}
		fclose(f);
	}
	closedir(dir);
	return r;
}

static int set_up(int fd, const char *name)
{
	struct ifreq req = { 0 };

	snprintf(req.ifr_name, sizeof(req.ifr_name), "%s", name);
	if (ioctl(fd, SIOCGIFFLAGS, &req) < 0)
		return -errno;
	req.ifr_flags |= IFF_UP | IFF_RUNNING;
	return ioctl(fd, SIOCSIFFLAGS, &req) < 0 ? -errno : 0;
}

static int set_address(int fd, const char *name, unsigned long request, uint32_t address)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = address };
	struct ifreq req = { 0 };

	snprintf(req.ifr_name, sizeof(req.ifr_name), "%s", name);
	memcpy(&req.ifr_addr, &in, sizeof(in));
	return ioctl(fd, request, &req) < 0 ? -errno : 0;
}

int netif_up(const char *address, char *ret_name, unsigned name_size)
{
	uint64_t prefix, deadline = now_ns() + DEADLINE_MS * NSEC_PER_MSEC;
	char name[IFNAMSIZ];
	uint32_t ip;
	int fd, r;

	r = options_split_address(address, '/', &ip, &prefix);
	if (r < 0)
		return r;
	while ((r = find_ethernet(name)) < 0 && now_ns() < deadline)
		sleep_ns(20 * NSEC_PER_MSEC);
	if (r < 0)
		return r;

	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	set_up(fd, "lo");
	r = set_address(fd, name, SIOCSIFADDR, ip);
	if (r == 0)
		r = set_address(fd, name, SIOCSIFNETMASK, htonl(~0U << (32 - prefix)));
	if (r == 0)
		r = set_up(fd, name);
	close(fd);
	if (r < 0)
		return r;
	snprintf(ret_name, name_size, "%s", name);
	return 0;
}
