"""Captions of the image demo: from the Unicode names of emoji to what people say.

The tables are meant to be read and edited. `captions` applies them to one picture: first
`DROPPED`, then the rules for people, then `SAID`; a name that no table knows stays as it is.
"""

from __future__ import annotations

import re

# Pictures that are left out, by the code points in the file name.
DROPPED = re.compile(
    r"""
    1f3f[b-f]                                # skin tones: the yellow ones are kept
    | _20e3 | ^00 | ^1f1 | ^1f2 | ^1f51[9a-f] | ^1f52[0-4] | ^329   # keycaps, letters, words
    | _27a1                                  # the same person, looking to the right
    | ^1f46[89]_200d.*1f46[67] | ^1f46a$ | ^1f9d1_200d   # families, people drawn three times
    | ^1f9b[0-3]$                            # hair without a head
    | ^1f55[c-f] | ^1f56[0-7]                # clocks at half past
    | ^25a[ab] | ^25f[b-e] | ^1f53[89c-d]    # tiny shapes, buttons with an arrow drawn twice
    | ^1f50[0-4] | ^23e[9a-f] | ^1f6af | ^1f6b[17] | ^1f4f[2345] | ^2199 | ^219[6-8]
    | ^203c | ^2049 | ^2122 | ^3030 | ^303d | ^27bf | ^1f549 | ^1f595 | ^1f4b9 | ^1f3e9 | ^1f48f | ^1f491
    | ^1f46[89]_200d_2764 | ^1f465 | ^1f464 | ^26ce | ^2665 | ^1f4ae | ^1f530 | ^1f5fe | ^1f532 | ^1f533
    """,
    re.VERBOSE,
)

# "man" or "woman" joined with an object is a profession.
PROFESSIONS = {
    "ear of rice": "farmer",
    "cooking": "cook",
    "baby bottle": "feeding a baby",
    "graduation cap": "student",
    "microphone": "singer",
    "artist palette": "artist",
    "school": "teacher",
    "factory": "welder",
    "personal computer": "programmer",
    "briefcase": "office worker",
    "wrench": "mechanic",
    "microscope": "scientist",
    "rocket": "astronaut",
    "fire engine": "firefighter",
    "probing cane": "with a white cane",
    "emoji component red hair": "with red hair",
    "emoji component curly hair": "with curly hair",
    "emoji component bald": "without hair",
    "emoji component white hair": "with white hair",
    "motorized wheelchair": "in an electric wheelchair",
    "manual wheelchair": "in a wheelchair",
    "staff of aesculapius": "doctor",
    "scales": "judge",
    "airplane": "pilot",
}

# Names that come with a female and a male sign; the third picture, without a sign, is left out.
# What is said after "woman" or "man", or both names with a bar between.
WITH_SIGN = {
    "runner": "running",
    "surfer": "surfing",
    "swimmer": "swimming",
    "weight lifter": "lifting weights",
    "golfer": "playing golf",
    "sleuth or spy": "detective",
    "police officer": "police officer",
    "woman with bunny ears": "with bunny ears",
    "bride with veil": "with a wedding veil",
    "person with blond hair": "with blond hair",
    "man with turban": "with a turban",
    "construction worker": "construction worker",
    "information desk person": "with a raised palm",
    "guardsman": "guard",
    "face massage": "getting a massage",
    "haircut": "getting a haircut",
    "face with no good gesture": "with crossed arms",
    "face with ok gesture": "with arms above the head",
    "person bowing deeply": "bowing",
    "happy person raising one hand": "raising a hand",
    "person frowning": "frowning",
    "person with pouting face": "pouting",
    "rowboat": "rowing a boat",
    "bicyclist": "riding a bicycle",
    "mountain bicyclist": "riding a mountain bike",
    "pedestrian": "walking",
    "face palm": "covering the face",
    "man in tuxedo": "in a tuxedo",
    "shrug": "shrugging",
    "person doing cartwheel": "doing a cartwheel",
    "juggling": "juggling",
    "wrestlers": "wrestling",
    "water polo": "playing water polo",
    "handball": "playing handball",
    "person with ball": "playing basketball",
    "superhero": "superhero",
    "supervillain": "villain",
    "standing person": "standing",
    "kneeling person": "kneeling",
    "deaf person": "deaf",
    "bearded person": "with a beard",
    "person in steamy room": "in a sauna",
    "person climbing": "climbing",
    "person in lotus position": "meditating",
    "mage": "wizard",
    "fairy": "fairy",
    "vampire": "vampire",
    "merperson": "mermaid | merman",
    "elf": "elf",
    "genie": "genie",
    "zombie": "zombie",
}

# Whole names: "Unicode name = what people say | another way to say it". A dash leaves the picture out.
_SAID = """
alembic = distillation flask
american football = american football | football
anatomical heart = human heart
anger symbol = red anger mark
anguished face = shocked face | anguished face
antenna with bars = signal bars
articulated lorry = green truck | big truck
aubergine = eggplant | aubergine
automated teller machine = atm sign
automobile = red car | car
bactrian camel = camel with two humps
baggage claim = baggage claim sign
ballot box with ballot = ballot box
ballot box with check = blue check box
banknote with dollar sign = dollar bills | money
banknote with euro sign = euro bills
banknote with pound sign = pound bills
banknote with yen sign = yen bills
bear face snowflake = polar bear face
beach with umbrella = beach umbrella
bell with cancellation stroke = no bell sign
billed cap = blue cap | cap
billiards = billiard ball
biohazard sign = biohazard sign
bird = blue bird | bird
bird black large square = black bird
bird fire = phoenix
black chess pawn = chess pawn
black circle for record = record button
black club suit = black club
black diamond suit = red diamond
black nib = pen nib
black question mark ornament = red question mark
black right-pointing triangle = play button
black left-pointing triangle = back button
black rightwards arrow = right arrow sign
black scissors = red scissors | scissors
black spade suit = black spade
black square for stop = stop button
black sun with rays = sun
black telephone = red telephone | telephone
black universal recycling symbol = green recycling sign | recycling symbol
blossom = yellow flower | flower
blowfish = pufferfish
bug = green caterpillar | caterpillar
bottle with popping cork = champagne bottle
breast-feeding = woman nursing a baby
cat = orange cat | cat
cat black large square = black cat
cat face with tears of joy = laughing cat face
cat face with wry smile = smirking cat face
carpentry saw = saw
carp streamer = fish kites
chains collision symbol = broken chain
chart with downwards trend = falling chart
chart with upwards trend = rising chart
cheering megaphone = red megaphone
chequered flag = checkered flag
children crossing = children crossing sign
circled latin capital letter m = blue metro sign
cityscape at dusk = city at dusk
clapper board = movie clapper
clapping hands sign = clapping hands
classical building = greek temple
clinking beer mugs = two beer mugs
closed book = red book | book
closed lock with key = lock with a key
closed mailbox with lowered flag = blue mailbox | mailbox
closed mailbox with raised flag = mailbox with raised flag
closed umbrella = closed purple umbrella
cloud with lightning = cloud with lightning
collision symbol = explosion
confounded face = confounded face
cooking = frying pan with egg
couch and lamp = blue sofa with a lamp | sofa
cross mark = red cross mark
currency exchange = currency exchange
customs = customs sign
cut of meat = steak
dagger knife = dagger
dancer = woman dancing in a red dress
dark sunglasses = sunglasses
dash symbol = puff of air
deciduous tree = green tree | tree
department store = store building
derelict house building = old house
diamond shape with a dot inside = blue diamond flower
direct hit = bullseye | dartboard
disappointed but relieved face = sad face with sweat
dizzy face = face with crossed eyes
dizzy face dizzy symbol = face with spiral eyes
dizzy symbol = dizzy star
dna double helix = dna
dotted line face = dotted face
double vertical bar = pause button
doughnut = donut | doughnut
droplet = blue drop | drop of water
dromedary camel = camel
dvd = golden disc
e-mail symbol = email envelope
ear of maize = corn | ear of corn
ear of rice = rice plant
earth globe americas = earth with america | planet earth
earth globe asia-australia = earth with asia | planet earth
earth globe europe-africa = earth with africa | planet earth
eight pointed black star = orange star with eight points
eight spoked asterisk = green asterisk
electric light bulb = light bulb
electric torch = flashlight | torch
envelope with downwards arrow above = envelope with red arrow
european castle = castle
european post office = post office
evergreen tree = dark green pine tree | pine tree
extraterrestrial alien = alien face | alien
alien monster = purple alien monster
eye left speech bubble = eye in a black speech bubble
face savouring delicious food = face licking its lips
face screaming in fear = screaming face
face throwing a kiss = face blowing a kiss
face with cold sweat = face with sweat
face with cowboy hat = cowboy face
face with finger covering closed lips = shushing face
face with head-bandage = face with a bandage
face with look of triumph = face with steam from the nose
face with medical mask = face with a mask
face with monocle = face with a monocle
face with one eyebrow raised = face with a raised eyebrow
face with open mouth = surprised face
face with open mouth and cold sweat = scared face with sweat
face with open mouth dash symbol = face breathing out
face with open mouth vomiting = vomiting face
face with party horn and party hat = party face
face with pleading eyes = pleading face
face with stuck-out tongue = face with tongue out
face with stuck-out tongue and tightly-closed eyes = laughing face with tongue out
face with stuck-out tongue and winking eye = winking face with tongue out
face with tears of joy = face with tears of joy | laughing crying face
face with thermometer = sick face with a thermometer
face with uneven eyes and wavy mouth = woozy face
face without mouth = face without mouth
face without mouth fog = face in the clouds
father christmas = santa claus | father christmas
fire engine = red fire truck | fire truck
firework sparkler = sparkler
fish = blue fish | fish
fish cake with swirl design = fish cake
fisted hand sign = fist
flag in hole = golf flag
flexed biceps = strong arm | muscles
floppy disk = floppy disk
flower playing cards = red flower card
foggy = bridge in the fog
fork and knife with plate = plate with fork and knife
french fries = french fries
front-facing baby chick = baby chick with open wings
fuel pump = gas pump
game die = dice
gem stone = blue gem | diamond
glass of milk = glass of milk
globe with meridians = blue wire globe
glowing star = shining yellow star
goal net = soccer goal
grinning cat face with smiling eyes = grinning cat face
grinning face with one large and one small eye = zany face
grinning face with smiling eyes = beaming face
grinning face with star eyes = face with star eyes
growing heart = growing pink heart
hand with index and middle fingers crossed = crossed fingers
hand with index finger and thumb crossed = finger heart
headphone = headphones
hear-no-evil monkey = monkey covering its ears
heart decoration = white heart on a purple square
heart with arrow = pink heart with an arrow
heart with ribbon = pink heart with a yellow ribbon
heavy black heart = red heart
heavy black heart adhesive bandage = bandaged heart
heavy black heart fire = burning heart
heavy check mark = black check mark
heavy division sign = division sign
heavy dollar sign = green dollar sign
heavy equals sign = equals sign
heavy exclamation mark symbol = red exclamation mark
heavy heart exclamation mark ornament = heart exclamation mark
heavy large circle = red ring
heavy minus sign = minus sign
heavy multiplication x = black cross mark
heavy plus sign = plus sign
helmet with white cross = rescue helmet
high voltage sign = yellow lightning bolt | lightning
high brightness symbol = bright sun sign
low brightness symbol = dim sun sign
high-speed train with bullet nose = bullet train
hindu temple = temple
hocho = kitchen knife | knife
honey pot = honey jar
horizontal traffic light = horizontal traffic light
hourglass with flowing sand = hourglass with sand
house building = house
house buildings = houses
house with garden = house with a tree
hundred points symbol = red hundred points
i love you hand sign = love you hand
ice hockey stick and puck = hockey stick and puck
identification card = id card
imp = purple devil face
incoming envelope = flying envelope
index pointing at the viewer = pointing at you
information source = blue information sign
izakaya lantern = red paper lantern | lantern
jack-o-lantern = halloween pumpkin | jack-o-lantern
japanese goblin = red goblin mask
japanese ogre = red ogre mask
jigsaw puzzle piece = green puzzle piece | puzzle piece
kiss mark = red lips
lady beetle = red ladybug | ladybug
large blue circle = blue circle
large blue diamond = blue diamond
large brown circle = brown circle
large brown square = brown square
large blue square = blue square
large green circle = green circle
large green square = green square
large orange circle = orange circle
large orange diamond = orange diamond
large orange square = orange square
large purple circle = purple circle
large purple square = purple square
large red circle = red circle
large red square = red square
large yellow circle = yellow circle
large yellow square = yellow square
latin cross = cross on a purple square
leafy green = green lettuce | lettuce
leaf fluttering in wind = leaf in the wind
left luggage = left luggage sign
left speech bubble = round speech bubble
left-facing fist = fist to the left
right-facing fist = fist to the right
left-pointing magnifying glass = magnifying glass
right-pointing magnifying glass = magnifying glass to the right
leftwards arrow with hook = curved arrow to the left
rightwards arrow with hook = curved arrow to the right
leftwards black arrow = left arrow sign
leftwards hand = hand to the left
rightwards hand = hand to the right
lemon large green square = green lime | lime
lock with ink pen = lock with a pen
long drum = drum
lower left ballpoint pen = blue pen | pen
lower left crayon = red crayon | crayon
lower left fountain pen = fountain pen
lower left paintbrush = paintbrush
lying face = face with a long nose
male with stroke and male and female sign = transgender sign
man in business suit levitating = man in a black suit
man with gua pi mao = man with a chinese cap
mans shoe = brown shoe | shoe
manual wheelchair = wheelchair
motorized wheelchair = electric wheelchair
mantelpiece clock = wooden clock
medium black circle = black circle
medium white circle = white circle
mens symbol = men sign
womens symbol = women sign
military medal = military medal
moon viewing ceremony = moon night
mother christmas = mother christmas
motorway = highway
mount fuji = mount fuji
mouse trap = mousetrap with cheese
moyai = stone head
multiple musical notes = musical notes
mushroom = red mushroom | mushroom
mushroom large brown square = brown mushroom
nazar amulet = blue eye amulet
necktie = shirt with a tie
negative squared cross mark = green cross button
night with stars = city at night
no entry = no entry sign
no entry sign = red prohibition sign
no bicycles = no bicycles sign
no smoking symbol = no smoking sign
nut and bolt = nut and bolt
octagonal sign = red stop sign
office building = office building
oncoming automobile = red car from the front
oncoming bus = bus from the front
oncoming police car = police car from the front
oncoming taxi = taxi from the front
open hands sign = open hands
optical disc = silver disc | disc
page facing up = sheet of paper
page with curl = curled sheet of paper
pile of poo = poop
passport control = passport control sign
pensive face = sad face | pensive face
performing arts = theater masks
permanent paper sign = infinity sign
person raising both hands in celebration = raised hands
person with folded hands = folded hands | praying hands
person with headscarf = woman with a headscarf
personal computer = laptop | computer
pistol = water pistol
place of worship = place of worship sign
playing card black joker = joker card
police cars revolving light = red siren | siren
postal horn = post horn
potable water symbol = drinking water sign
pouting face = red angry face
pouting cat face = angry cat face
pregnant person = pregnant person
probing cane = white cane
public address loudspeaker = loudspeaker
put litter in its place symbol = litter sign
link symbol = chain links
ok hand sign = ok hand
radio button = gray round button
raised back of hand = back of a hand
raised hand with fingers splayed = open hand
raised hand with part between middle and ring fingers = vulcan salute
recreational vehicle = blue car
red gift envelope = red envelope
reminder ribbon = yellow ribbon
restroom = restroom sign
ring buoy = life ring
ringed planet = planet with rings | saturn
robot face = robot
roll of paper = toilet paper
rolled-up newspaper = rolled newspaper
rolling on the floor laughing = rolling laughing face
running shirt with sash = running shirt
sailboat = red sailboat | sailboat
satellite antenna = satellite dish
sauropod = green long neck dinosaur | dinosaur
school satchel = red backpack | backpack
see-no-evil monkey = monkey covering its eyes
serious face with symbols covering mouth = swearing face
sign of the horns = rock hand
six pointed star with middle dot = star with a dot on a purple square
ski and ski boot = ski boot
slice of pizza = slice of pizza | pizza
slightly smiling face left right arrow = shaking face
slightly smiling face up down arrow = nodding face
sleeping accommodation = person in bed
sleeping symbol = zzz
small airplane = small airplane
smiling cat face with heart-shaped eyes = cat face with heart eyes
smiling cat face with open mouth = happy cat face
smiling face with halo = angel face | smiling face with halo
smiling face with heart-shaped eyes = face with heart eyes
smiling face with horns = smiling purple devil face
smiling face with open mouth = happy face | smiling face with open mouth
smiling face with open mouth and cold sweat = happy face with sweat
smiling face with open mouth and smiling eyes = laughing face
smiling face with open mouth and tightly-closed eyes = laughing face with closed eyes
smiling face with smiling eyes = smiling face with rosy cheeks
smiling face with smiling eyes and hand covering mouth = giggling face
smiling face with smiling eyes and three hearts = smiling face with hearts
smiling face with tear = smiling face with a tear
smoking symbol = cigarette
snow capped mountain = mountain with snow
soft ice cream = ice cream cone
spiral note pad = notepad
spiral calendar pad = spiral calendar
splashing sweat symbol = drops of water
spouting whale = whale spouting water
spool of thread = spool of thread
staff of aesculapius = medical sign
star and crescent = crescent and star on a purple square
star of david = star of david on a purple square
orthodox cross = orthodox cross on a purple square
peace symbol = peace sign on a purple square
yin yang = yin yang on a purple square
wheel of dharma = wheel on a purple square
atom symbol = atom on a purple square
menorah with nine branches = menorah on a purple square
steam locomotive = steam train
straight ruler = ruler
studio microphone = studio microphone
stuffed flatbread = kebab
sunset over buildings = city at sunset
tangerine = orange fruit | tangerine
teacup without handle = cup of green tea
television = television | tv
thong sandal = flip flop
three button mouse = computer mouse
thumbs down sign = thumbs down
thumbs up sign = thumbs up
thunder cloud and rain = cloud with lightning and rain
timer clock = kitchen timer
triangular flag on post = red flag
trident emblem = golden trident
umbrella on ground = beach parasol
umbrella with rain drops = purple umbrella in the rain
umbrella = purple umbrella | umbrella
unicorn face = unicorn
up-pointing red triangle = red triangle
down-pointing red triangle = red triangle pointing down
vertical traffic light = traffic light
victory hand = peace hand | victory hand
videocassette = video cassette
water closet = toilet sign
water wave = blue wave | ocean wave
waving black flag = black flag
waving black flag skull and crossbones = pirate flag
waving hand sign = waving hand
waving white flag = white flag
waving white flag male with stroke and male and female sign = transgender flag
waving white flag rainbow = rainbow flag
wedding = wedding church
wheelchair symbol = wheelchair sign
white down pointing backhand index = hand pointing down
white exclamation mark ornament = white exclamation mark
white frowning face = frowning face
white heavy check mark = green check mark
white large square = white square
black large square = black square
white left pointing backhand index = hand pointing left
white medium star = yellow star | star
white question mark ornament = white question mark
white right pointing backhand index = hand pointing right
white smiling face = smiling face
white sun behind cloud = sun behind a cloud
white sun behind cloud with rain = sun behind a rain cloud
white sun with small cloud = sun with a small cloud
white up pointing backhand index = hand pointing up
white up pointing index = finger pointing up
womans boots = brown boot | boot
womans clothes = purple blouse
womans hat = straw hat
womans sandal = sandal
wood = wooden log
wrapped present = red present | gift box
zipper-mouth face = face with a zipped mouth
sun behind cloud = sun behind a gray cloud
sun with face = sun with a face
full moon with face = full moon with a face
new moon with face = dark moon with a face
first quarter moon with face = half moon with a face
last quarter moon with face = half moon with a face to the left
new moon symbol = new moon
full moon symbol = full moon
first quarter moon symbol = half moon
last quarter moon symbol = half moon to the left
waxing crescent moon symbol = dark crescent moon
waxing gibbous moon symbol = -
waning gibbous moon symbol = -
waning crescent moon symbol = -
crescent moon = yellow crescent moon | moon
cinema = cinema sign
elevator = elevator sign
baby symbol = baby sign
left right arrow = arrow to both sides sign
up down arrow = arrow up and down sign
upwards black arrow = up arrow sign
downwards black arrow = down arrow sign
arrow pointing rightwards then curving upwards = -
arrow pointing rightwards then curving downwards = -
eject symbol = eject button
warning sign = yellow warning sign
radioactive sign = radioactive sign
construction sign = construction barrier
t-rex = green tyrannosaurus | tyrannosaurus
beverage box = juice box
ear with hearing aid = ear with a hearing aid
zebra face = zebra
giraffe face = giraffe
hot pepper = red chili pepper | hot pepper
bell pepper = green bell pepper | bell pepper
dress = blue dress | dress
t-shirt = blue t-shirt | t-shirt
jeans = blue jeans | jeans
balloon = red balloon | balloon
ribbon = red bow | bow
high-heeled shoe = red high heel | high-heeled shoe
handbag = brown handbag | handbag
briefcase = brown briefcase | briefcase
purse = pink purse | purse
pouch = yellow pouch
flat shoe = blue flat shoe
hiking boot = brown hiking boot
coat = dark blue coat | coat
scarf = red scarf | scarf
gloves = blue gloves | gloves
briefs = blue briefs
shorts = blue shorts | shorts
one-piece swimsuit = blue swimsuit | swimsuit
ball of yarn = pink ball of yarn | ball of yarn
magnet = red magnet | magnet
toolbox = red toolbox | toolbox
bucket = blue bucket | bucket
teapot = red teapot | teapot
tulip = pink tulip | tulip
rose = red rose | rose
hibiscus = pink hibiscus | hibiscus
cherry blossom = pink cherry blossom
tomato = red tomato | tomato
strawberry = red strawberry | strawberry
lemon = yellow lemon | lemon
banana = yellow banana | banana
pear = green pear | pear
grapes = purple grapes | grapes
cherries = red cherries | cherries
blueberries = blueberries
butterfly = orange butterfly | butterfly
octopus = red octopus | octopus
crab = red crab | crab
lobster = red lobster | lobster
turtle = green turtle | turtle
frog face = green frog face | frog
pig face = pink pig face | pig face
pig = pink pig | pig
dolphin = blue dolphin | dolphin
whale = blue whale | whale
snake = green snake | snake
crocodile = green crocodile | crocodile
dragon = green dragon | dragon
lizard = green lizard | lizard
flamingo = pink flamingo | flamingo
parrot = green parrot | parrot
taxi = yellow taxi | taxi
tractor = green tractor | tractor
pickup truck = red pickup truck
delivery truck = delivery truck
motor scooter = yellow motor scooter
racing motorcycle = red motorcycle | motorcycle
racing car = red racing car | racing car
door = brown door | door
pill = red and yellow pill | pill
pushpin = red pushpin
round pushpin = red map pin
bookmark = red bookmark
fire = fire | flame
drop of blood = red drop | drop of blood
boxing glove = red boxing glove | boxing glove
fire extinguisher = red fire extinguisher
postbox = red postbox | mailbox
ice cube = blue ice cube | ice cube
comet = blue comet | comet
cyclone = blue spiral | cyclone
crystal ball = purple crystal ball | crystal ball
gear = gear | cogwheel
ghost = white ghost | ghost
skull = white skull | skull
snowman without snow = snowman
snowman = snowman in the snow
"""


def _parse(table: str) -> dict[str, tuple[str, ...]]:
    lines = (line.split(" = ") for line in table.strip().splitlines())
    return {name: () if said == "-" else tuple(said.split(" | ")) for name, said in lines}


SAID = _parse(_SAID)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
COLOUR_WORDS = frozenset((*COLOURS, "brown", "black", "white", "gray", "golden", "silver", "dark"))

_SIGN = re.compile(r"(?P<name>.+) (?P<sign>female|male) sign")
_PERSON = re.compile(r"(?P<who>man|woman) (?P<what>.+)")
_CLOCK = re.compile(r"clock face (?P<hour>\w+) oclock")


def _person(name: str) -> tuple[str, ...] | None:
    """Captions of a person, or None where the picture shows nobody that the tables know."""
    if (found := _SIGN.fullmatch(name)) and found["name"] in WITH_SIGN:
        female = found["sign"] == "female"
        said = WITH_SIGN[found["name"]]
        if " | " in said:
            return (said.split(" | ")[0 if female else 1],)
        return (f"{'woman' if female else 'man'} {said}",)
    if name in WITH_SIGN:
        return ()
    if (found := _PERSON.fullmatch(name)) and found["what"] in PROFESSIONS:
        return (f"{found['who']} {PROFESSIONS[found['what']]}",)
    return None


def captions(code: str, name: str) -> tuple[str, ...]:
    """Ways to say what a picture shows, the usual one first; none: the picture is left out.

    >>> captions("2764", "heavy black heart")
    ('red heart',)
    """
    if DROPPED.search(code):
        return ()
    if (people := _person(name)) is not None:
        return people
    if found := _CLOCK.fullmatch(name):
        return (f"clock at {found['hour']}",)
    return SAID.get(name, (name,))


def shortened(caption: str) -> str:
    """The caption without what follows "with", "in", "on" and the like: still true, and easier to say.

    >>> shortened("pink heart with an arrow")
    'pink heart'
    """
    return re.split(r" (?:with|in|on|at|behind|of|from|above|over) ", caption)[0]


def wordings(caption: str) -> tuple[str, ...]:
    """Ways to ask for one caption, the plain one more than once.

    >>> wordings("red heart")
    ('red heart', 'red heart', 'a red heart', 'picture of a red heart')
    """
    short = shortened(caption)
    ways = (caption, caption, f"a {caption}", f"picture of a {caption}")
    return ways if short == caption else (*ways, short)


def recoloured(caption: str, colour: str) -> str:
    """The caption of a copy in another colour.

    >>> recoloured("red apple", "blue"), recoloured("cat face", "red")
    ('blue apple', 'red cat face')
    """
    words = [word for word in caption.split() if word not in COLOUR_WORDS]
    return " ".join([colour, *words])


# Objects of one colour: their copies in other colours teach that colour and thing are said apart.
_PAINTABLE = """
    red circle, red square, blue diamond, red triangle, yellow star, red ring, red heart, broken heart
    two hearts, sparkling heart, pink heart with an arrow, blue spiral, purple umbrella, blue drop
    closed purple umbrella, yellow crescent moon, shining yellow star, sun with a face, yellow lightning bolt
    green tree, dark green pine tree, cactus, maple leaf, four leaf clover, red rose, pink tulip
    yellow flower, sunflower, pink hibiscus, pink cherry blossom, red mushroom, red tomato
    yellow lemon, yellow banana, pineapple, red apple, green pear, orange fruit, red strawberry, donut
    cookie, ice cream cone, halloween pumpkin, red bow, red present, birthday cake, red balloon
    red backpack, yellow ribbon, trophy, guitar, basketball and hoop, red racing car, red paper lantern
    orange cat, dog, green dragon, green crocodile, blue whale, green snake, horse, monkey, pink pig
    red octopus, green caterpillar, red ladybug, blue fish, tropical fish, green turtle, baby chick
    blue bird, camel, blue dolphin, tiger face, cat face, horse face, monkey face, dog face
    pink pig face, green frog face, bear face, fox face, lion face, hamster face, red crab
    red lobster, green long neck dinosaur, green tyrannosaurus, orange butterfly, teddy bear
    pink flamingo, squid, thumbs up, crown, blue jeans, blue dress, blue t-shirt, brown handbag
    pink purse, brown shoe, athletic shoe, red high heel, brown boot, footprints, blue cap, red scarf
    blue gloves, socks, blue gem, light bulb, bell, key, lock, red book, file folder, red pushpin
    paperclip, red postbox, blue mailbox, television, radio, red telephone, blue pen, red crayon
    purple crystal ball, happy face, grinning face, sad face, angry face, face with heart eyes
    smiling face with sunglasses, winking face, purple devil face, purple alien monster, bus, red car
    blue car, red pickup truck, red fire truck, yellow taxi, scooter, yellow motor scooter, red sailboat
    red flag, brown door, blue sofa with a lamp, blue bucket, red teapot, chair, red magnet, red toolbox
    pink ball of yarn, oil drum, red boxing glove, coin, yo-yo, red envelope, flip flop, blue swimsuit
    green bell pepper, poop, fire, tent, red lips, helicopter, purple grapes
"""
PAINTABLE = frozenset(name.strip() for name in re.split(r"[,\n]", _PAINTABLE.strip()))

# Never shown in training: what the models make of these, they put together themselves.
UNSEEN = (
    "red cat face",
    "blue apple",
    "purple fish",
    "green car",
    "pink frog face",
    "yellow book",
    "orange balloon",
    "blue rose",
    "green dog face",
    "purple star",
    "pink car",
    "blue mushroom",
)
DEMO = (
    "red heart",
    "blue heart",
    "red apple",
    "green apple",
    "smiling face",
    "cat face",
    "dog face",
    "pizza",
    "rocket",
    "red car",
    "sun",
    "rainbow",
    "pine tree",
    "rose",
    "blue fish",
    "red circle",
    "green square",
    "yellow star",
    "hamburger",
    "robot",
    *UNSEEN,
)
