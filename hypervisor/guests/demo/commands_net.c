/* Commands for the network. */
#include "net.h"

static const char *const states[] = {"off", "discover", "request", "bound", "renew"};

static void show(const char *name, uint32_t address)
{
    print(" %s=", name);
    print_address(address);
}

static void net_command(char *arguments)
{
    (void)arguments;
    uint32_t count = 0;
    for (uint32_t at = 0; at < NICS; at++) {
        struct nic *nic = &nics[at];
        struct station *station = nic->station;
        if (!nic->device)
            continue;
        count++;
        print("eth%u: mac=%02x:%02x:%02x:%02x:%02x:%02x state=%s mtu=%u", at, nic->mac[0], nic->mac[1], nic->mac[2],
              nic->mac[3], nic->mac[4], nic->mac[5], nic->connected ? "connected" : "waiting", nic->mtu);
        show("address", station->address);
        show("mask", station->mask);
        show("gateway", station->gateway);
        show("dns", station->name_server);
        print(" dhcp=%s received=%lu sent=%lu dropped=%lu\r\n", station->fixed ? "static" : states[station->dhcp.state],
              nic->received, nic->sent, nic->dropped);
    }
    print("nics: %u\r\n", count);
}

static bool is_bound(void *argument)
{
    struct station *station = argument;
    return station->dhcp.state == DHCP_BOUND || !station->nic->connected;
}

/* Asks for an address anew and waits for it. */
static void dhcp_command(char *arguments)
{
    uint64_t number = 0;
    char *word = take_word(&arguments);
    if (starts_with(word, "eth"))
        word += 3;
    if ((*word && !parse_number(word, &number)) || number >= NICS || !nics[number].device || !nics[number].connected) {
        print("error: there is no such NIC, or it is not connected\r\n");
        return;
    }
    struct station *station = nics[number].station;
    dhcp_start(station);
    wait_for(is_bound, station, 10 * NANOSECONDS);
    if (!station->address) {
        print("error: no answer\r\n");
        return;
    }
    print("address: ");
    print_address(station->address);
    print("\r\nlease-s: %u\r\n", station->dhcp.lease);
}

static void ping_command(char *arguments)
{
    uint32_t address, received = 0, sent = 0;
    uint64_t count = 1, nanoseconds, total = 0;
    char *word = take_word(&arguments), *times = take_word(&arguments);
    if (!parse_address(word, &address) || (*times && !parse_number(times, &count))) {
        print("error: usage: ping ADDRESS [COUNT]\r\n");
        return;
    }
    struct station *station = station_for(address);
    if (!station) {
        print("error: no route\r\n");
        return;
    }
    while (sent < count && !interrupted)
        if (ping(station, address, (uint16_t)++sent, &nanoseconds)) {
            received++;
            total += nanoseconds;
        }
    print("sent: %u\r\nreceived: %u\r\n", sent, received);
    if (received)
        print("average-us: %lu\r\n", total / received / 1000);
}

const struct command net_commands[] = {
    {"net", "", net_command},
    {"dhcp", "[NIC]", dhcp_command},
    {"ping", "ADDRESS [COUNT]", ping_command},
    {NULL, NULL, NULL},
};
