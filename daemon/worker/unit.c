/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VMM that is the main process of a unit which somebody else wrote. When that process
 * ends, systemd ends the unit and everybody in it, the target too. So the daemon tells it
 * at COMMIT that the target is the main process now (manager/none.c), in the name of the
 * source; and it must be one that systemd listens to, which most services are not: they
 * get a drop-in in /run with NotifyAccess=main, once until the next boot.
 *
 * Called by upgrade.c for VMs that neither we nor libvirt started. Owns its bus while it
 * asks. If this process dies, the drop-in is there or not; nothing else has changed.
 */
#include "unit.h"

#include "cleanup.h"
#include "findings.h"
#include "procfs.h"
#include "system_bus.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#define BLOCKER	  UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER
#define NOTE	  UPGRADED__V1__SEVERITY__SEVERITY_NOTE
#define SYSTEMD	  "org.freedesktop.systemd1"
#define MANAGER	  "/org/freedesktop/systemd1", SYSTEMD ".Manager"
#define DROP_IN	  "50-upgraded.conf"
#define RELOAD_US (60 * 1000000ULL)

struct service {
	char *id;
	char *notify_access;
	char *restart;
	uint32_t main_pid;
};

static void service_clear(struct service *s)
{
	free(s->id);
	free(s->notify_access);
	free(s->restart);
	*s = (struct service){ 0 };
}

#define _cleanup_service_    __attribute__((cleanup(service_clear)))
#define _cleanup_bus_	     __attribute__((cleanup(sd_bus_flush_close_unrefp)))
#define _cleanup_sd_error_   __attribute__((cleanup(sd_bus_error_free)))
#define _cleanup_sd_message_ __attribute__((cleanup(sd_bus_message_unrefp)))

static bool ends_with(const char *text, size_t len, const char *end)
{
	size_t n = strlen(end);

	return len > n && !strncmp(text + len - n, end, n);
}

int unit_of_cgroup(const char *cgroup, char **ret_unit, bool *ret_user)
{
	const char *line = strstr(cgroup, "name=systemd:"), *found = NULL;
	size_t len = 0;

	*ret_unit = NULL;
	*ret_user = false;
	if (!line)
		line = !strncmp(cgroup, "0::", 3) ? cgroup : strstr(cgroup, "\n0::");
	line = line ? strchr(line, '/') : NULL;
	for (const char *part = line; part && *part == '/'; part += strcspn(part, "/\n")) {
		size_t n = strcspn(++part, "/\n");

		if (ends_with(part, n, ".scope")) {
			/* It lasts as long as anybody is in it. */
			found = NULL;
		} else if (ends_with(part, n, ".service")) {
			/* What comes below is not the system manager's. */
			*ret_user |= found && !strncmp(found, "user@", 5);
			found = part;
			len = n;
		}
	}
	if (!found || !strncmp(found, "user@", 5))
		return 0;
	*ret_unit = strndup(found, len);
	return *ret_unit ? 0 : -ENOMEM;
}

/* 1, or 0 if no service is responsible for @pid. */
static int read_service(sd_bus *bus, pid_t pid, struct service *s)
{
	_cleanup_sd_message_ sd_bus_message *reply = NULL;
	_cleanup_sd_error_ sd_bus_error e = SD_BUS_ERROR_NULL;
	const char *path;
	int r;

	r = sd_bus_call_method(bus, SYSTEMD, MANAGER, "GetUnitByPID", &e, &reply, "u",
			       (uint32_t)pid);
	if (sd_bus_error_has_name(&e, SYSTEMD ".NoUnitForPID"))
		return 0;
	if (r >= 0)
		r = sd_bus_message_read(reply, "o", &path);
	if (r < 0)
		return r;
	if (sd_bus_get_property_trivial(bus, SYSTEMD, path, SYSTEMD ".Service", "MainPID", NULL,
					'u', &s->main_pid) < 0)
		return 0;
	r = sd_bus_get_property_string(bus, SYSTEMD, path, SYSTEMD ".Unit", "Id", NULL, &s->id);
	if (r >= 0)
		r = sd_bus_get_property_string(bus, SYSTEMD, path, SYSTEMD ".Service",
					       "NotifyAccess", NULL, &s->notify_access);
	if (r >= 0)
		r = sd_bus_get_property_string(bus, SYSTEMD, path, SYSTEMD ".Service", "Restart",
					       NULL, &s->restart);
	return r < 0 ? r : 1;
}

static bool listens(const struct service *s)
{
	return !strcmp(s->notify_access, "main") || !strcmp(s->notify_access, "all");
}

static pid_t source_pid(const struct upgrade *u)
{
	return u->start->vm->process->pid;
}

int unit_examine(struct upgrade *u, struct error *err)
{
	_cleanup_bus_ sd_bus *bus = NULL;
	_cleanup_free_ char *cgroup = NULL, *unit = NULL;
	_cleanup_service_ struct service s = { 0 };
	bool user;
	int r;

	if (sd_booted() <= 0 || proc_read(source_pid(u), "cgroup", &cgroup, NULL) < 0)
		return 0;
	r = unit_of_cgroup(cgroup, &unit, &user);
	if (r < 0 || !unit)
		return r;
	if (user)
		return findings_add(&u->findings, BLOCKER, "unit.user", unit,
				    "start it with upgradectl run, or as a unit of the system",
				    "the VMM may be the main process of %s, a unit of a user's own "
				    "systemd, which would end the target together with the source",
				    unit);
	r = system_bus_open(&bus);
	if (r >= 0)
		r = read_service(bus, source_pid(u), &s);
	if (r == -ENOMEM)
		return r;
	if (r < 0)
		return findings_add(
			&u->findings, BLOCKER, "unit.unknown", unit,
			"see whether systemd answers: systemctl status",
			"the VMM is in %s, and systemd cannot be asked whether as its main "
			"process: %s",
			unit, strerror(-r));
	if (r == 0 || s.main_pid != (uint32_t)source_pid(u))
		return 0;
	u->unit = TAKE_PTR(s.id);
	u->unit_restarts = strcmp(s.restart, "no") != 0;
	return findings_add(&u->findings, NOTE, "unit.main", u->unit, NULL, "%s",
			    listens(&s) ? "the target becomes the main process of the unit"
					: "the target becomes the main process of the unit, which "
					  "gets a drop-in with NotifyAccess=main for it, in "
					  "/run/systemd/system");
}

static int write_drop_in(const char *unit, struct error *err)
{
	_cleanup_free_ char *dir = NULL, *path = NULL;
	_cleanup_fclose_ FILE *f = NULL;

	if (asprintf(&dir, "/run/systemd/system/%s.d", unit) < 0) {
		dir = NULL;
		return -ENOMEM;
	}
	if (asprintf(&path, "%s/" DROP_IN, dir) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	if ((mkdir("/run/systemd/system", 0755) < 0 && errno != EEXIST) ||
	    (mkdir(dir, 0755) < 0 && errno != EEXIST))
		return error_errno(err, -errno, "cannot make %s", dir);
	f = fopen(path, "we");
	if (!f || fchmod(fileno(f), 0644) < 0 ||
	    fputs("# So that upgraded can say which process is the main one.\n"
		  "[Service]\nNotifyAccess=main\n",
		  f) < 0 ||
	    fflush(f))
		return error_errno(err, -errno, "cannot write %s", path);
	return 0;
}

int unit_prepare(struct upgrade *u, struct error *err)
{
	_cleanup_bus_ sd_bus *bus = NULL;
	_cleanup_service_ struct service s = { 0 }, now = { 0 };
	_cleanup_sd_error_ sd_bus_error e = SD_BUS_ERROR_NULL;
	int r;

	if (!u->unit)
		return 0;
	r = system_bus_open(&bus);
	if (r >= 0)
		r = sd_bus_set_method_call_timeout(bus, RELOAD_US);
	if (r >= 0)
		r = read_service(bus, source_pid(u), &s);
	if (r <= 0)
		return error_errno(err, r ?: -ESRCH, "systemd cannot be asked about %s", u->unit);
	if (listens(&s))
		return 0;
	r = write_drop_in(u->unit, err);
	if (r < 0)
		return r;
	r = sd_bus_call_method(bus, SYSTEMD, MANAGER, "Reload", &e, NULL, NULL);
	if (r >= 0)
		r = read_service(bus, source_pid(u), &now);
	if (r < 0)
		return error_errno(err, r, "systemd does not load its units anew");
	if (r == 0 || !listens(&now))
		return error_set(err, -EOPNOTSUPP,
				 "systemd does not listen to %s, in spite of the drop-in %s",
				 u->unit, DROP_IN);
	return 0;
}
