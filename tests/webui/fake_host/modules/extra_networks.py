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
    for script in getattr(p, "scripts", None) or ():
        script.after_extra_networks_activate(p, batch_number=p.iteration, prompts=p.prompts, extra_network_data=data)


def deactivate(p, data):
    for network in dict.fromkeys([*by_network(data), *extra_network_registry.values()]):
        network.deactivate(p)


def parse_prompt(prompt):
    """The prompt without tags, and its tags."""
    data = {}
    for name, text in re.findall(r"<(\w+):([^>]+)>", prompt):
        data.setdefault(name, []).append(ExtraNetworkParams(text.split(":")))
    return re.sub(r"<\w+:[^>]+>", "", prompt), data


def parse_prompts(prompts):
    """The prompts without tags, and the first one's tags."""
    parsed = [parse_prompt(prompt) for prompt in prompts]
    return [text for text, _ in parsed], parsed[0][1]
