/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgraded-outdated: what a package manager runs when it is done. Looks whether VMs run
 * a binary that was just replaced, and does what [Outdated] in upgraded.conf says:
 *
 *   off    nothing
 *   ask    tells, with the command to type
 *   auto   has systemd start upgraded-outdated.service, which is this program with --now,
 *          which becomes upgradectl upgrade --all-outdated with the policy's options
 *
 * Its exit status never fails a package: 0, but for --now, which has upgradectl's.
 */
#include "ask.h"
#include "config.h"
#include "text.h"

#include <string.h>

#define UNIT "upgraded-outdated.service"

static int names_of_outdated(char **ret_names, size_t *ret_n, struct error *err)
{
	_cleanup_client_ struct client c = CLIENT_INIT;
	_cleanup_envelope_ Envelope *answer = NULL;
	Upgraded__V1__ListRequest list = UPGRADED__V1__LIST_REQUEST__INIT;
	Envelope request = ENVELOPE_INIT;
	size_t len;
	FILE *f;
	int r;

	request.body_case = UPGRADED__V1__ENVELOPE__BODY_LIST;
	request.list = &list;
	r = client_connect(&c, getenv("UPGRADED_SOCKET") ?: CLIENT_CONTROL_SOCKET,
			   "upgraded-outdated", err);
	if (r >= 0)
		r = client_call(&c, &request, UPGRADED__V1__ENVELOPE__BODY_VM_LIST, ASK_TIMEOUT_MS,
				&answer, err);
	if (r < 0)
		return r;
	f = open_memstream(ret_names, &len);
	if (!f)
		return -ENOMEM;
	for (size_t i = 0; i < answer->vm_list->n_vms; i++) {
		const Upgraded__V1__Vm *vm = answer->vm_list->vms[i];
		_cleanup_free_ char *name = vm->outdated ? text_printable(vm->name) : NULL;

		if (name)
			fprintf(f, "%s%s", (*ret_n)++ ? ", " : "", name);
	}
	return fclose(f) ? -ENOMEM : 0;
}

struct command {
	char *argv[16];
	size_t n;
};

static void add(struct command *c, const char *option, const char *value)
{
	c->argv[c->n++] = (char *)option;
	if (value)
		c->argv[c->n++] = (char *)value;
}

static const char *text_of(const struct config *config, enum config_key key)
{
	return config->value[key].text;
}

/* What the policy comes to; points into @config. */
static struct command command_of(const struct config *config)
{
	struct command c = { 0 };

	add(&c, "upgradectl", NULL);
	add(&c, "upgrade", NULL);
	add(&c, "--all-outdated", NULL);
	add(&c, "--max-parallel", text_of(config, CONFIG_OUTDATED_MAX_PARALLEL));
	if (config->value[CONFIG_OUTDATED_CANARY].number)
		add(&c, "--canary", text_of(config, CONFIG_OUTDATED_CANARY));
	if (config->value[CONFIG_OUTDATED_STOP_AFTER].number)
		add(&c, "--stop-after", text_of(config, CONFIG_OUTDATED_STOP_AFTER));
	if (*text_of(config, CONFIG_OUTDATED_WINDOW))
		add(&c, "--window", text_of(config, CONFIG_OUTDATED_WINDOW));
	return c;
}

/* Returns only if that fails. */
static int become(char **argv)
{
	execvp(argv[0], argv);
	fprintf(stderr, "upgraded-outdated: cannot run %s: %m\n", argv[0]);
	return CLI_FAILED;
}

static int tell(const struct config *config)
{
	static const char *const start[] = { "systemctl", "start", "--no-block", UNIT, NULL };
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_free_ char *names = NULL;
	struct command command = command_of(config);
	size_t n = 0;

	if (names_of_outdated(&names, &n, &err) < 0) {
		fprintf(stderr, "upgraded-outdated: not known which VMs are outdated: %s\n",
			err.text ?: "out of memory");
		return 0;
	}
	if (!n)
		return 0;
	printf("%zu VM%s run%s a binary that was replaced: %s\n", n, n == 1 ? "" : "s",
	       n == 1 ? "s" : "", names);
	if (config->value[CONFIG_OUTDATED_MODE].number == CONFIG_AUTO) {
		puts("  they are upgraded by " UNIT ", as upgraded.conf says");
		fflush(stdout);
		(void)become((char **)start);
		return 0;
	}
	fputs("  upgrade them with:", stdout);
	for (size_t i = 0; i < command.n; i++)
		printf(" %s", command.argv[i]);
	putchar('\n');
	return 0;
}

int main(int argc, char **argv)
{
	bool now = argc == 2 && !strcmp(argv[1], "--now");
	_cleanup_error_ struct error err = ERROR_INIT;
	struct config config = CONFIG_INIT;
	struct command command;
	int r = 0;

	if (argc > 1 && !now) {
		fputs("upgraded-outdated is started by package managers and by systemd; see "
		      "upgraded.conf(5)\n",
		      stderr);
		return CLI_USAGE;
	}
	if (config_load("", &config, &err) < 0) {
		fprintf(stderr, "upgraded-outdated: %s%s%s%s\n", err.text, err.hint ? " (" : "",
			err.hint ?: "", err.hint ? ")" : "");
		return now ? CLI_FAILED : 0;
	}
	if (config.value[CONFIG_OUTDATED_MODE].number != CONFIG_OFF) {
		command = command_of(&config);
		r = now ? become(command.argv) : tell(&config);
	}
	config_clear(&config);
	return r;
}
