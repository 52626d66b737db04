"""Tags in prompts: `activate` is called for every registered network, with an empty list too."""

import re

extra_network_registry = {}
extra_network_aliases = {}


def initialize():
    extra_network_registry.clear()
    extra_network_aliases.clear()


def register_extra_network(extra_network):
    extra_network_registry[extra_network.name] = extra_network


def register_extra_network_alias(extra_network, alias):
    extra_network_aliases[alias] = extra_network


class ExtraNetworkParams:
    def __init__(self, items=None):
        self.items = items or []
        self.positional = [item for item in self.items if item.count("=") != 1]
        self.named = dict(item.split("=") for item in self.items if item.count("=") == 1)

    def __eq__(self, other):
        return self.items == other.items


class ExtraNetwork:
    def __init__(self, name):
        self.name = name


def by_network(data):
    found = {}
    for name, params in data.items():
        network = extra_network_registry.get(name) or extra_network_aliases.get(name)
        if network is not None:
            found.setdefault(network, []).extend(params)
    return found


def activate(p, data):
    wanted = by_network(data)
    for network, params in wanted.items():
        network.activate(p, params)
    for network in extra_network_registry.values():
        if network not in wanted:
            network.activate(p, [])


def deactivate(p, data):
    for network in dict.fromkeys([*by_network(data), *extra_network_registry.values()]):
        network.deactivate(p)


def parse_prompts(prompts):
    """The prompts without tags, and the first one's tags."""
    found = [re.findall(r"<(\w+):([^>]+)>", prompt) for prompt in prompts]
    data = {}
    for name, text in found[0]:
        data.setdefault(name, []).append(ExtraNetworkParams(text.split(":")))
    return [re.sub(r"<\w+:[^>]+>", "", prompt) for prompt in prompts], data
