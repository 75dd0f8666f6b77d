/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl metrics: counters and states for Prometheus, in its text format. No server
 * of our own: upgraded-metrics.timer has it write a file that the node exporter reads,
 * and the daemon needs no port, no HTTP and no library for it. Read-only; the file
 * appears under its name when it is whole.
 */
#include "ask.h"
#include "file.h"
#include "options.h"
#include "version.h"
#include "vm.h"

#include <inttypes.h>
#include <string.h>

struct args {
	struct cli *cli;
	const char *output;
};

static const char doc[] =
	"Print counters and states in the text format of Prometheus.\v"
	"Counters begin at zero with the daemon. With --output they are written to FILE, as the "
	"textfile collector of the node exporter reads it; upgraded-metrics.timer does that.";

enum { OPTION_OUTPUT = 0x1a0 };

static const struct argp_option options[] = {
	{ "output", OPTION_OUTPUT, "FILE", 0, "Write them to FILE instead", 0 },
	{ 0 },
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *args = state->input;

	switch (key) {
	case OPTION_OUTPUT:
		args->output = arg;
		return 0;
	default:
		return options_rest(args->cli, NULL, key, arg, state);
	}
}

static void family(FILE *f, const char *name, const char *type, const char *help)
{
	fprintf(f, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void single(FILE *f, const char *name, const char *type, const char *help, uint64_t value)
{
	family(f, name, type, help);
	fprintf(f, "%s %" PRIu64 "\n", name, value);
}

static void print_upgrades(FILE *f, const Upgraded__V1__Metrics *m)
{
	/* A label has no blanks. */
	static const char *const outcome[] = { "unknown", "committed", "rolled_back", "refused",
					       "lost" };

	family(f, "upgraded_upgrades_total", "counter",
	       "Upgrades that have ended, by outcome and memory tier.");
	for (size_t i = 0; i < m->n_upgrades; i++) {
		const Upgraded__V1__UpgradeCount *u = m->upgrades[i];
		const char *tier = tier_name(u->tier);

		fprintf(f, "upgraded_upgrades_total{outcome=\"%s\",tier=\"%s\"} %" PRIu64 "\n",
			(unsigned)u->outcome < ARRAY_SIZE(outcome) ? outcome[u->outcome]
								   : "unknown",
			strcmp(tier, "-") ? tier : "none", u->upgrades);
	}
}

static void print_blackout(FILE *f, const Upgraded__V1__Histogram *h)
{
	if (!h)
		return;
	family(f, "upgraded_blackout_seconds", "histogram",
	       "How long guests stood still in upgrades that were committed.");
	for (size_t i = 0; i < h->n_up_to_us && i < h->n_counts; i++)
		fprintf(f, "upgraded_blackout_seconds_bucket{le=\"%g\"} %" PRIu64 "\n",
			(double)h->up_to_us[i] / 1e6, h->counts[i]);
	fprintf(f,
		"upgraded_blackout_seconds_bucket{le=\"+Inf\"} %" PRIu64 "\n"
		"upgraded_blackout_seconds_sum %.6f\nupgraded_blackout_seconds_count %" PRIu64 "\n",
		h->count, (double)h->sum_us / 1e6, h->count);
}

static void print_phases(FILE *f, const Upgraded__V1__Metrics *m)
{
	family(f, "upgraded_phase_seconds", "summary", "How long the phases of upgrades took.");
	for (size_t i = 0; i < m->n_phases; i++) {
		const Upgraded__V1__PhaseSum *p = m->phases[i];

		fprintf(f,
			"upgraded_phase_seconds_sum{phase=\"%s\"} %.6f\n"
			"upgraded_phase_seconds_count{phase=\"%s\"} %" PRIu64 "\n",
			phase_name(p->phase), (double)p->sum_us / 1e6, phase_name(p->phase),
			p->count);
	}
}

/* What the daemon has at this moment. */
static void print_vms(FILE *f, const Upgraded__V1__VmList *list)
{
	static const char *const state[] = { "running", "outdated", "upgrading", "gone" };
	uint64_t count[ARRAY_SIZE(state)] = { 0 }, fds = 0, bytes = 0, pinned = 0;

	for (size_t i = 0; i < list->n_vms; i++) {
		const Upgraded__V1__Vm *vm = list->vms[i];

		count[!vm->alive ? 3 : vm->upgrade_id ? 2 : vm->outdated ? 1 : 0]++;
		for (size_t k = 0; k < vm->n_custody; k++) {
			fds += vm->custody[k]->fds;
			bytes += vm->custody[k]->bytes;
			pinned += vm->custody[k]->pinned;
		}
	}
	family(f, "upgraded_vms", "gauge",
	       "VMs that are known: running; running a binary that was replaced on disk; being "
	       "upgraded; ended.");
	for (size_t i = 0; i < ARRAY_SIZE(state); i++)
		fprintf(f, "upgraded_vms{state=\"%s\"} %" PRIu64 "\n", state[i], count[i]);
	single(f, "upgraded_custody_descriptors", "gauge",
	       "Descriptors held for upgrades under way.", fds);
	single(f, "upgraded_custody_bytes", "gauge", "Data held for upgrades under way.", bytes);
	single(f, "upgraded_custody_guest_memory_bytes", "gauge",
	       "Guest memory that these descriptors keep alive.", pinned);
}

static void print_metrics(FILE *f, const Upgraded__V1__Metrics *m, const Upgraded__V1__VmList *list)
{
	family(f, "upgraded_build_info", "gauge", "Always 1; the version of upgradectl.");
	fprintf(f, "upgraded_build_info{version=\"%s\"} 1\n", UPGRADED_VERSION);
	family(f, "upgraded_start_time_seconds", "gauge", "When the daemon started, since 1970.");
	fprintf(f, "upgraded_start_time_seconds %.3f\n", (double)m->started_at_us / 1e6);
	print_upgrades(f, m);
	print_blackout(f, m->blackout);
	print_phases(f, m);
	single(f, "upgraded_workers_failed_total", "counter",
	       "Workers that ended before their upgrade did; another one took it up.",
	       m->workers_failed);
	single(f, "upgraded_rebuilds_total", "counter",
	       "Guests that were brought back from custody because their VMMs had ended.",
	       m->rebuilds);
	print_vms(f, list);
}

static int get(const struct cli *cli, Envelope **ret_metrics, Envelope **ret_list)
{
	Upgraded__V1__MetricsRequest metrics = UPGRADED__V1__METRICS_REQUEST__INIT;
	Upgraded__V1__ListRequest list = UPGRADED__V1__LIST_REQUEST__INIT;
	Envelope request = ENVELOPE_INIT;
	int r;

	request.body_case = UPGRADED__V1__ENVELOPE__BODY_METRICS_REQUEST;
	request.metrics_request = &metrics;
	r = ask(cli, &request, UPGRADED__V1__ENVELOPE__BODY_METRICS, ASK_TIMEOUT_MS, ret_metrics);
	if (r != CLI_DONE)
		return r;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_LIST;
	request.list = &list;
	return ask(cli, &request, UPGRADED__V1__ENVELOPE__BODY_VM_LIST, ASK_TIMEOUT_MS, ret_list);
}

int verb_metrics(struct cli *cli, int argc, char **argv)
{
	_cleanup_envelope_ Envelope *metrics = NULL, *list = NULL;
	_cleanup_(file_abandon) struct file file = FILE_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	struct args args = { .cli = cli };
	int r;

	options_parse(options, parse, NULL, doc, argc, argv, &args);
	r = get(cli, &metrics, &list);
	if (r != CLI_DONE)
		return r;
	if (cli->json && !args.output)
		return print_json(&metrics->metrics->base);
	r = file_begin(&file, args.output ?: "-", &err);
	if (r >= 0) {
		print_metrics(file.f, metrics->metrics, list->vm_list);
		r = file_finish(&file, &err);
	}
	if (r < 0)
		fail(cli, NULL, &err);
	return r < 0 ? CLI_FAILED : CLI_DONE;
}
