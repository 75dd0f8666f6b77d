/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tinyvmm's command line. A target is started with the same one as its source. Called
 * once, by main(); owns nothing.
 */
#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

static void usage(void)
{
	fputs("tinyvmm --name NAME [OPTION...]\n"
	      "  --socket PATH   of the daemon's vmm.sock\n"
	      "  --proof PATH    the file that tells what the guest does (proof.h)\n"
	      "  --memory MIB    guest memory (16)\n"
	      "  --vcpus N       1 to 8 (1)\n"
	      "  --pages N       pages that each vCPU writes (8)\n"
	      "  --rest MS       for how long each vCPU rests after a round (0)\n"
	      "  --irqchip       with KVM's interrupt controllers\n"
	      "  --memfd         memory in a memfd even where there is a guest_memfd\n"
	      "  --fault PATH    the file that orders mishaps (fault.c)\n",
	      stderr);
	exit(2);
}

void parse_options(struct vm *vm, int argc, char **argv)
{
	static const struct option options[] = {
		{ "name", required_argument, NULL, 'n' },
		{ "socket", required_argument, NULL, 's' },
		{ "proof", required_argument, NULL, 'p' },
		{ "memory", required_argument, NULL, 'm' },
		{ "vcpus", required_argument, NULL, 'c' },
		{ "pages", required_argument, NULL, 'g' },
		{ "rest", required_argument, NULL, 'r' },
		{ "irqchip", no_argument, NULL, 'i' },
		{ "memfd", no_argument, NULL, 'd' },
		{ "fault", required_argument, NULL, 'f' },
		{ 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0)
		switch (c) {
		case 'n':
			vm->name = optarg;
			break;
		case 's':
			vm->socket = optarg;
			break;
		case 'p':
			vm->proof_path = optarg;
			break;
		case 'm':
			vm->memory = strtoul(optarg, NULL, 10) << 20;
			break;
		case 'c':
			vm->n_vcpus = (unsigned int)strtoul(optarg, NULL, 10);
			break;
		case 'g':
			vm->pages = (unsigned int)strtoul(optarg, NULL, 10);
			break;
		case 'r':
			vm->rest_ms = (unsigned int)strtoul(optarg, NULL, 10);
			break;
		case 'i':
			vm->irqchip = true;
			break;
		case 'd':
			vm->memfd = true;
			break;
		case 'f':
			vm->fault = optarg;
			break;
		default:
			usage();
		}
	if (!vm->name || optind != argc || !vm->n_vcpus || vm->n_vcpus > VCPUS_MAX || !vm->pages ||
	    PAGES_GPA + (size_t)vm->n_vcpus * vm->pages * 4096 > vm->memory)
		usage();
}
