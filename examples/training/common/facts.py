"""The planted-fact task: the sentence templates and the two word lists, one copy for training and for export."""

ADJECTIVES = """amber ancient arctic autumn azure blazing bold brave bright bronze calm carbon clever cobalt copper coral
crimson crystal curious daring dark dawn deep distant dusty eager early ebony electric emerald fading fearless fierce
floating frozen gentle gilded glass golden grand green hidden hollow humble icy indigo iron ivory jade keen lively
lonely lucky lunar marble mellow misty modern narrow nimble noble northern olive opal orange pale paper patient pearl
plain polar proud purple quick quiet rapid rough royal ruby rustic sable sandy scarlet secret shady sharp shiny silent
silver simple sleepy slow smooth solar southern spotted square stable steady stormy striped subtle sunny swift tall
tender tidy tiny topaz twin upper urban velvet vivid warm western white wild winter wise wooden yellow young""".split()
NOUNS = """anchor apple arrow badge banner barrel basket beacon bell bench bicycle blanket boat bottle bridge brush
bucket button cabin cable camera candle canyon castle cellar chain chair chapel circle clock cloud compass corner
cradle crane crown curtain desk diamond door dragon drum eagle engine falcon feather fence ferry field flag flute
forest fountain garden gate glacier glove hammer harbor harp hawk helmet hill horn island jacket jewel kettle key
kite ladder lagoon lamp lantern laptop lever library lighthouse lion lock magnet map market meadow mill mirror
monkey mountain needle nest notebook oak orchard otter oven paddle palace panda parrot pencil piano pillow pilot
planet pocket prism puzzle rabbit radio raven ribbon river robot rocket saddle sailor scale school shadow shield
ship shovel signal spoon station statue stone street table temple tiger token tower train tree tunnel turtle valley
vase village violin wagon wallet whale wheel whistle window wolf yacht zebra""".split()


def draw(rng, count):
    """`count` distinct (name, code) pairs; codes have five digits."""
    names = set()
    while len(names) < count:
        names.add((ADJECTIVES[rng.integers(len(ADJECTIVES))], NOUNS[rng.integers(len(NOUNS))]))
    return [(f"{a} {n}", str(rng.integers(10000, 100000))) for a, n in sorted(names)]


def statement(name, code):
    return f"\nThe code of the {name} is {code}.\n"


def question(name):
    return f"\nQuestion: what is the code of the {name}? Answer:"


def answer(code):
    return f" {code}"
